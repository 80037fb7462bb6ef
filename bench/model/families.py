"""Every family that is read, from tiny random checkpoints: how far logits are from transformers',
and how many of 24 greedy tokens are the same; of GGUF files also beside llama.cpp.

Differences are the largest of 64 positions, relative to the largest logit, in fp16 stores: of a
prompt at once, and token by token.
"""

from argparse import ArgumentParser, Namespace
from dataclasses import asdict, dataclass
import json
from pathlib import Path
import subprocess
import sys
import tempfile
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from bench.quality.fidelity import engine_logits
from bench.quality.reference_model import reference_choices, reference_logits
from bench.support.command import Report, command, run, show
from bench.support.expert_checkpoints import EXPERT_FAMILIES
from bench.support.family_checkpoints import (
    GGUF_METADATA,
    IN_GGUF,
    NOT_IN_LLAMA_CPP,
    VARIANTS,
    reference_of,
)
from bench.support.gguf_checkpoint import write_gguf
from bench.support.tiny_checkpoint import converted
from flash_llm_ros.engine import Engine, EngineConfig, GenerationRequest

ROOT = Path(__file__).parents[2]
POSITIONS, NEW_TOKENS = 64, 24
PROMPT = 'Where is the charging station? Turn left, then stop. '
MOST_DIFFERENCE = 1e-3
ALL = VARIANTS | EXPERT_FAMILIES


@dataclass(frozen=True)
class Found:
    prompt: float                   # largest relative difference of logits
    steps: float
    answer: list[int]               # greedy tokens
    same: int                       # of them, as transformers'
    prompt_tokens: list[int]
    llama_cpp: int | None = None    # the same, as llama.cpp's

    @property
    def right(self) -> bool:
        return (max(self.prompt, self.steps) <= MOST_DIFFERENCE and self.same == NEW_TOKENS
                and self.llama_cpp in (None, NEW_TOKENS))


def compared(checkpoint: Path, store: Path, reference: PreTrainedModel) -> Found:
    """What a new fp16 store of a checkpoint answers, beside transformers' model of it."""
    converted(checkpoint, store, neurons='fp16', calibrate=False)
    tokens = np.random.default_rng(0).integers(0, 256, POSITIONS).tolist()
    expected = reference_logits(reference, tokens)
    engine = Engine.open(EngineConfig(store, 40_000_000, 'exact', lock_memory=False,
                                      context_length=256, kv_cache='int16'))
    try:
        differences = [np.abs(found - expected).max() / np.abs(expected).max()
                       for found in (engine_logits(engine, tokens), step_logits(engine, tokens))]
        generation = engine.start(GenerationRequest(PROMPT, raw=True, max_tokens=NEW_TOKENS))
        for _ in generation:
            pass
    finally:
        engine.close()
    prompt, answer = generation.prompt_tokens, generation.tokens
    choices = reference_choices(reference, prompt, answer)
    return Found(*map(float, differences), answer, as_many(answer, choices), prompt)


def step_logits(engine: Engine, tokens: list[int]) -> np.ndarray:
    """Logits of every position, one token a pass; float32 [tokens, vocabulary]."""
    found = np.empty((len(tokens), engine.model.spec.embedding.vocab_size), np.float32)
    for place, token in enumerate(tokens):
        engine.model.forward(np.array([token]), place, True, found[place:place + 1])
    return found


def as_many(answer: list[int], others: list[int]) -> int:
    """Tokens before the first that differs."""
    different = (place for place, (one, other) in enumerate(zip(answer, others, strict=True))
                 if one != other)
    return next(different, len(answer))


def llama_cpp_answer(file: Path, prompt: list[int]) -> list[int]:
    """24 greedy tokens. RuntimeError where llama.cpp does not read the file."""
    peer = subprocess.run([sys.executable, '-m', 'bench.support.llama_cpp_greedy', str(file),
                           json.dumps([prompt])], capture_output=True, text=True, timeout=100,
                          cwd=ROOT, check=False)
    if peer.returncode:
        raise RuntimeError(f'llama.cpp: {peer.stderr[-500:]}')
    return [token for token, _ in json.loads(peer.stdout)[0]]


def rows_of(name: str, folder: Path, llama_cpp: bool = True) -> list[tuple[str, str, Found]]:
    """Of one family: name, files, what was found; `llama_cpp`: also beside it."""
    checkpoint = ALL[name](folder / 'checkpoint')
    reference = reference_of(checkpoint)
    rows = [(name, 'Hugging Face', compared(checkpoint, folder / 'store', reference))]
    if name in IN_GGUF or name in EXPERT_FAMILIES:
        file = folder / 'model.gguf'
        write_gguf(checkpoint, file, metadata=GGUF_METADATA.get(name, {}))
        found = asdict(compared(file, folder / 'gguf.store', reference))
        if llama_cpp and name not in NOT_IN_LLAMA_CPP:
            found['llama_cpp'] = as_many(found['answer'],
                                         llama_cpp_answer(file, found['prompt_tokens']))
        rows.append((name, 'GGUF', Found(**found)))
    return rows


def measure(options: Namespace) -> Report:
    torch.set_num_threads(1)
    rows: list[tuple[str, str, Found]] = []
    # fatrelu is a step: rounding takes a few gates over it.
    for name in options.family or [name for name in ALL if name != 'fatrelu']:
        with tempfile.TemporaryDirectory() as folder:
            rows += rows_of(name, Path(folder))
    show(('family', 'files', 'prompt', 'steps', f'of {NEW_TOKENS} tokens', "llama.cpp's"),
         [(name, files, f'{found.prompt:.1e}', f'{found.steps:.1e}', str(found.same),
           '' if found.llama_cpp is None else str(found.llama_cpp))
          for name, files, found in rows])
    wrong = [f'{name} from {files}' for name, files, found in rows if not found.right]
    figures: list[dict[str, Any]] = [{'family': name, 'files': files, **asdict(found)}
                                     for name, files, found in rows]
    return Report(figures, f'{len(rows)} kinds of files, wrong: {", ".join(wrong) or "none"}',
                  bool(wrong))


def parser() -> ArgumentParser:
    result = command(__doc__)
    result.add_argument('--family', action='append', choices=ALL, help='only this one')
    return result


if __name__ == '__main__':
    sys.exit(run(parser(), measure))
