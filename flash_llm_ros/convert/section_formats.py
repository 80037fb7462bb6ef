"""Which sections of an int4 store stay int8: those where 4 bits cost the model most, per byte."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from flash_llm_ros.checkpoint.checkpoint import Checkpoint
from flash_llm_ros.convert.calibration import opened
from flash_llm_ros.convert.calibration_text import tokens_of
from flash_llm_ros.convert.head_inputs import head_inputs_root
from flash_llm_ros.convert.input_statistics import Array
from flash_llm_ros.convert.rounding_trial import RoundingTrial
from flash_llm_ros.store.codec import row_codec
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.geometry import (
    ATTENTION_SECTIONS,
    Section,
    SectionSpec,
    head_section,
    spec_sections,
)
from flash_llm_ros.store.writer import Progress

INT4_LOSS = 0.025       # nats a token: about 2.5 % of perplexity
_TOKENS = 256
_HEAD_TOKENS = 4096     # on which the head's errors make up for each other
# Squared error relative to the rows: 4-bit sources stay below 1e-5, others reach 5e-3.
_NOTHING_LOST = 1e-4
_LOOKED_AT = 256        # rows of a matrix that tell whether it has more than 4 bits
# Matrices whose rows a section's rows are. The down columns of bundles run across the source's
# blocks: they lose.
_MATRICES = {'gate_up': ('layers.{}.gate', 'layers.{}.up'), 'down': ('layers.{}.down',),
             'embedding': ('embedding',), 'head': ('head',)}
_EXPERT_MATRICES = {'expert_gate_up': ('layers.{}.expert_gate', 'layers.{}.expert_up'),
                    'expert_down': ('layers.{}.expert_down',)}


@dataclass(frozen=True)
class Price:
    """What keeping a section in int8 costs, and what it saves."""

    bytes: int              # more than in int4
    divergence: float       # nats a token that int4 costs, measured with this section alone


class SectionFormats:
    """The codecs of all sections in file order: `first`, what is sure, then `measured`.

    With int4 neurons a section is int4 where its matrices have no more to keep (a GGUF of 4 bits).
    Others are written in int8 first and measured. An embedding that is not the head stays int8:
    a token needs one row of it. Experts are all int4: they are what must be small; or mxfp4, where
    the checkpoint has them so. What every token uses beside them is not measured.
    """

    def __init__(self, checkpoint: Checkpoint, layout: str, neurons: str, loss: float) -> None:
        """`loss`: nats a token that rounding to int4 may cost together; inf keeps nothing int8."""
        spec = checkpoint.spec
        self._loss = loss
        self._specs = spec_sections(layout, spec)
        self.first = tuple('mxfp4' if neurons == 'int4' and _is_mxfp4(checkpoint, section)
                           else neurons for section in self._specs)
        self.undecided: list[int] = []
        self._head = head_section(spec)
        if neurons == 'int4':
            # Attention's have a format of their own.
            loses = [section.copies == 1 and section.name not in ATTENTION_SECTIONS
                     and (loss < np.inf or section.name == self._head)
                     and _loses(checkpoint, section)
                     for section in self._specs]
            self.first = tuple('int8' if lost else codec
                               for lost, codec in zip(loses, self.first, strict=True))
            self.undecided = [index for index, section in enumerate(self._specs) if loses[index]
                              and (section.layer >= 0 or section.name == self._head)
                              and not (section.layer >= 0 and spec.feed_forward.experts)]

    def measured(self, store: FlashStore, texts: list[str], progress: Progress
                 ) -> tuple[tuple[str, ...], Array | None]:
        """The codecs to use, of a store that has the `first` ones, and the head's root.

        The head is rounded for other tokens than it is tried on. Raises FlashLlmError, ValueError.
        """
        prices: dict[int, Price] = {}
        with opened(store) as engine:
            tokens = tokens_of(engine, texts, _TOKENS + _HEAD_TOKENS)
            tried = min(_TOKENS, engine.config.context_length, len(tokens) // 2)
            root = (head_inputs_root(engine, tokens[tried:])
                    if any(self._specs[index].name == self._head for index in self.undecided)
                    else None)
            trial = RoundingTrial(store, engine, tokens[:tried], root)
            for done, index in enumerate(self.undecided, 1):
                section = store.manifest.geometry.sections[index]
                prices[index] = Price(_more_bytes(section), trial.divergence(section))
                progress('trying 4 bits', done, len(self.undecided))
        kept = worth_keeping(prices, self._loss)
        return tuple('int4' if index in prices and index not in kept else codec
                     for index, codec in enumerate(self.first)), root


def worth_keeping(prices: Mapping[int, Price], loss: float) -> set[int]:
    """Sections to keep in int8 so that the others cost at most `loss` together.

    Those that save most per byte are kept first; then those are given up, worst first, that turn
    out not to be needed. Divergences of single sections add up.
    """
    order = sorted(prices, key=lambda index: -prices[index].divergence / prices[index].bytes)
    rest, kept = sum(price.divergence for price in prices.values()), []
    for index in order:
        if rest <= loss:
            break
        kept.append(index)
        rest -= prices[index].divergence
    for index in reversed(kept.copy()):
        if rest + prices[index].divergence <= loss:
            kept.remove(index)
            rest += prices[index].divergence
    return set(kept)


def _more_bytes(section: Section) -> int:
    int8, int4 = (row_codec(name, section.codec.dim).row_bytes for name in ('int8', 'int4'))
    return (int8 - int4) * section.rows * section.bundles


def _loses(checkpoint: Checkpoint, section: SectionSpec) -> bool:
    if section.name not in _MATRICES:
        return True
    return any(_error(checkpoint.rows(name.format(section.layer), 0, _LOOKED_AT)) > _NOTHING_LOST
               for name in _MATRICES[section.name])


def _is_mxfp4(checkpoint: Checkpoint, section: SectionSpec) -> bool:
    """Whether experts are such that MXFP4 loses nothing, by the first one of a layer."""
    codec = row_codec('mxfp4', section.dim)
    some = (checkpoint.rows(name.format(section.layer), 0, 1)[0, :_LOOKED_AT]
            for name in _EXPERT_MATRICES.get(section.name, ()))
    return section.name in _EXPERT_MATRICES and all(
        np.array_equal(codec.decode(codec.encode(rows)), rows) for rows in some)


def _error(rows: Array) -> float:
    """Squared error of int4 rows relative to their squares; 1 where they do not fit."""
    codec = row_codec('int4', rows.shape[1])
    try:
        lost = codec.decode(codec.encode(rows)) - rows
    except ValueError:
        return 1.0          # writing or trying them says what is wrong
    size = np.square(rows, dtype=np.float64).sum()
    return float(np.square(lost, dtype=np.float64).sum() / size) if size else 0.0
