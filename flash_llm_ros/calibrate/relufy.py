"""Makes a SwiGLU checkpoint a ReLU one: self-distillation of its feed-forward weights.

As in ReLUfication (arXiv 2310.04564) and ProSparse (arXiv 2402.13516), with the original as the
teacher: KL divergence of the logits, relative error of each block's output, and a penalty on
relu(gate) whose weight follows the share of zeros that is wanted by then.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
import hashlib
import math
import os
from pathlib import Path
import time

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor
from torch.nn import functional

from flash_llm_ros.calibrate.distillation import Divergence, ReluBlocks, SiluBlocks
from flash_llm_ros.calibrate.torch_model import MATRIX, FeedForward, TorchModel, gated_weights
from flash_llm_ros.checkpoint.checkpoint import Checkpoint
from flash_llm_ros.checkpoint.errors import CheckpointError

_FIRST_PENALTY, _LEAST_PENALTY, _MOST_PENALTY = 0.05, 1e-4, 10.0
_PENALTY_STEP = 0.1             # largest change of the penalty's logarithm in a step
_ZEROS_AT_FULL_STEP = 0.01      # at this distance from the wanted share
_ZEROS_MEMORY = 0.8
_BETAS = (0.9, 0.95)
_LAST_RATE = 0.02               # of the learning rate, at the end of the cosine
_PIECE = 1024                   # tokens that perplexity is measured on at once
_LOGIT_ROWS = 256


@dataclass(frozen=True)
class RelufyOptions:
    """How long and how hard; ValueError on creation."""

    tokens: int = 2_000_000     # to train on, all in all
    zeros: float = 0.8          # share of relu(gate) to reach
    threshold: float = 0.0      # of relu, to reach
    learning_rate: float = 4e-4
    warm_up: float = 0.02       # share of the tokens
    ramp: float = 0.5           # share of the tokens until zeros and threshold are to be there
    error_weight: float = 0.02  # of the blocks' relative error
    length: int = 256           # tokens of a sequence
    sequences: int = 8          # run at once
    batch: int = 8              # sequences of a step
    save_every: float = 600.0   # s
    measure_every: int = 50     # steps

    def __post_init__(self) -> None:
        for name in ('tokens', 'length', 'sequences', 'batch', 'measure_every'):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f'{name} is {value}; it must be at least 1')
        for name in ('zeros', 'warm_up', 'ramp'):
            if not 0 < (value := getattr(self, name)) < 1:
                raise ValueError(f'{name} is {value}; it must be between 0 and 1')
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise ValueError(f'learning_rate is {self.learning_rate}; it must be positive')
        if not (math.isfinite(self.threshold) and self.threshold >= 0):
            raise ValueError(f'threshold is {self.threshold}; it must be a number from 0 on')
        if self.batch % self.sequences:
            raise ValueError(f'batch is {self.batch}; it must be a multiple of sequences, '
                             f'which is {self.sequences}')


@dataclass(frozen=True)
class Measured:
    """A student on the held-out text."""

    tokens: int                 # that it was trained on
    perplexity: float
    relative: float             # to the teacher's
    zeros: float                # share of relu(gate)


@dataclass(frozen=True)
class Step:
    """Where training stands."""

    tokens: int
    divergence: float           # nats a token
    error: float                # of the blocks' outputs, relative, mean over layers
    zeros: float
    penalty: float
    measured: Measured | None   # where it was just measured


class Relufication:
    """A teacher, its student and an optimizer.

    `train` goes on from what the file `state` holds, which is replaced as a whole. With the same
    texts and options it takes the same batches; another number of tokens only changes the
    schedule. ValueError where the state is of another model or another text.
    """

    def __init__(self, teacher: Checkpoint, start: Checkpoint, text: NDArray[np.int64],
                 held_out: NDArray[np.int64], options: RelufyOptions, state: Path) -> None:
        """`start`: the feed-forward weights to begin with; the teacher's own, or a ReLU model's."""
        check_pair(teacher, start)
        if len(text) < options.length:
            raise ValueError(f'the text has {len(text)} tokens; one sequence has {options.length}')
        if len(held_out) < 2:
            raise ValueError(f'the held-out text has {len(held_out)} tokens; it must have 2')
        layers = range(teacher.spec.layers)
        self._options, self._state = options, state
        pieces = len(text) // options.length
        self._pieces = torch.from_numpy(text[:pieces * options.length]).view(pieces, -1)
        self._held_out = torch.from_numpy(held_out)
        self._model = TorchModel(teacher, max(options.length, _PIECE))
        self._teacher = SiluBlocks([gated_weights(teacher, layer, MATRIX) for layer in layers])
        self.student = ReluBlocks([gated_weights(start, layer, torch.float32)
                                   for layer in layers])
        self._optimizer = torch.optim.AdamW(self.student.parameters(), options.learning_rate,
                                            _BETAS, weight_decay=0.0, fused=True)
        self.tokens, self._penalty = 0, _FIRST_PENALTY
        self._zeros = self._first_zeros = -1.0          # not known yet
        digest = hashlib.sha256(repr((teacher.spec, options.length)).encode())
        digest.update(np.ascontiguousarray(text).data)
        self._made_for = digest.hexdigest()
        if state.exists():
            self._load()
        self.teacher_perplexity, _ = self._perplexity(self._teacher)

    def train(self, report: Callable[[Step], None]) -> None:
        """Until the tokens are used up; the state is saved now and then, and at the end."""
        options, saved, steps = self._options, time.monotonic(), 0
        while self.tokens < options.tokens:
            divergence, error = self._step(self._batch())
            steps += 1
            last = self.tokens >= options.tokens
            measured = self.measure() if last or steps % options.measure_every == 0 else None
            if last or time.monotonic() - saved > options.save_every:
                self._save()
                saved = time.monotonic()
            report(Step(self.tokens, divergence, error, self._zeros, self._penalty, measured))

    @property
    def threshold(self) -> float:
        """Up to which the student's relu is 0 now."""
        return self._options.threshold * self._ramp()

    def measure(self) -> Measured:
        self.student.threshold = self.threshold
        perplexity, zeros = self._perplexity(self.student)
        return Measured(self.tokens, perplexity, perplexity / self.teacher_perplexity, zeros)

    def weights(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """What was trained, by canonical names; for relu with `threshold`."""
        for name, parameter in self.student.canonical():
            yield name, parameter.detach().numpy()

    def _batch(self) -> Tensor:
        """int64 [batch, length]: every piece once, in random order, before any of them twice."""
        options, count = self._options, len(self._pieces)
        first = self.tokens // options.length
        places = []
        for index in range(first, first + options.batch):
            epoch, place = divmod(index, count)
            places.append(int(np.random.default_rng(epoch).permutation(count)[place]))
        return self._pieces[places]

    def _step(self, batch: Tensor) -> tuple[float, float]:
        """Mean divergence and error before the step."""
        options, student = self._options, self.student
        student.threshold = self.threshold
        for group in self._optimizer.param_groups:
            group['lr'] = options.learning_rate * self._rate()
        parts = batch.split(options.sequences)
        divergences, errors, zeros = 0.0, 0.0, 0.0
        for part in parts:
            with torch.no_grad():
                theirs = self._model.run(part, self._teacher)
            student.begin(self._teacher.outputs)
            ours = self._model.run(part, student)
            divergence = Divergence.apply(ours.flatten(0, 1), theirs.flatten(0, 1),
                                          self._model.head)
            loss = (divergence + options.error_weight * student.error
                    + self._penalty * student.size)
            (loss / len(parts)).backward()
            divergences += float(divergence.detach()) / len(parts)
            errors += float(student.error.detach()) / len(parts)
            zeros += student.zeros / len(parts)
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=False)
        self.tokens += batch.numel()
        self._follow(zeros)
        return divergences, errors

    def _rate(self) -> float:
        """Share of the learning rate: a warm-up, then a cosine."""
        done, warm_up = self.tokens / self._options.tokens, self._options.warm_up
        if done < warm_up:
            return max(done / warm_up, _LAST_RATE)
        fall = (done - warm_up) / (1 - warm_up)
        return _LAST_RATE + (1 - _LAST_RATE) * (1 + math.cos(math.pi * fall)) / 2

    def _ramp(self) -> float:
        """Share of the way to the zeros and the threshold that are wanted."""
        return min(self.tokens / self._options.tokens / self._options.ramp, 1.0)

    def _follow(self, zeros: float) -> None:
        """Raise the penalty while there are fewer zeros than wanted by now, else lower it."""
        if self._first_zeros < 0:
            self._zeros = self._first_zeros = zeros
        self._zeros = _ZEROS_MEMORY * self._zeros + (1 - _ZEROS_MEMORY) * zeros
        wanted = self._first_zeros + self._ramp() * (self._options.zeros - self._first_zeros)
        push = max(-1.0, min(1.0, (wanted - self._zeros) / _ZEROS_AT_FULL_STEP))
        self._penalty = max(_LEAST_PENALTY,
                            min(_MOST_PENALTY, self._penalty * math.exp(_PENALTY_STEP * push)))

    @torch.no_grad()
    def _perplexity(self, blocks: FeedForward) -> tuple[float, float]:
        """Of the held-out text, and the share of zeros that blocks with relu had."""
        total, count, zeros, tokens = 0.0, 0, 0.0, 0
        for piece in self._held_out.split(_PIECE):
            if isinstance(blocks, ReluBlocks):
                blocks.begin(None)
            hidden = self._model.run(piece[None], blocks)[0, :-1]
            for rows, wanted in zip(hidden.split(_LOGIT_ROWS), piece[1:].split(_LOGIT_ROWS),
                                    strict=True):
                logits = (rows @ self._model.head.T).float()
                total += float(functional.cross_entropy(logits, wanted, reduction='sum'))
                count += len(wanted)
            zeros += getattr(blocks, 'zeros', 0.0) * len(piece)
            tokens += len(piece)
        return math.exp(total / count), zeros / tokens

    def _save(self) -> None:
        self._state.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._state.with_suffix('.new')
        with temporary.open('wb') as file:
            torch.save({'made_for': self._made_for, 'student': self.student.state_dict(),
                        'optimizer': self._optimizer.state_dict(), 'tokens': self.tokens,
                        'penalty': self._penalty, 'zeros': self._zeros,
                        'first_zeros': self._first_zeros}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(self._state)

    def _load(self) -> None:
        state = torch.load(self._state, weights_only=True, mmap=True)
        if state['made_for'] != self._made_for:
            raise ValueError(f'{self._state} belongs to another model or another text; give '
                             'another work folder, or remove it')
        self.student.load_state_dict(state['student'])
        self._optimizer.load_state_dict(state['optimizer'])
        self.tokens, self._penalty = state['tokens'], state['penalty']
        self._zeros, self._first_zeros = state['zeros'], state['first_zeros']


def check_pair(teacher: Checkpoint, start: Checkpoint) -> None:
    """CheckpointError where these cannot be a teacher and what its student begins with."""
    spec, block = teacher.spec, teacher.spec.feed_forward
    if not block.gated or block.activation != 'silu':
        raise CheckpointError(f'{teacher.path}: its blocks are '
                              f'{"gated" if block.gated else "without gate"} {block.activation}; '
                              'only gated silu can be made relu')
    for name, ours, theirs in (
            ('hidden_size', start.spec.hidden_size, spec.hidden_size),
            ('layers', start.spec.layers, spec.layers),
            ('feed_forward.size', start.spec.feed_forward.size, block.size),
            ('embedding.vocab_size', start.spec.embedding.vocab_size, spec.embedding.vocab_size)):
        if ours != theirs:
            raise CheckpointError(f'{start.path}: {name} is {ours}; it must be the '
                                  f"teacher's, {theirs}")
