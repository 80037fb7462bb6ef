"""Which codecs each section of a store may get, before anything is measured."""

from collections.abc import Mapping

import numpy as np

from flash_llm_ros.checked_fields import check
from flash_llm_ros.checkpoint.checkpoint import Checkpoint
from flash_llm_ros.convert.codec_choice import Candidate, Frontier
from flash_llm_ros.convert.input_root import Array
from flash_llm_ros.convert.options import ConversionOptions
from flash_llm_ros.store.codec import row_codec
from flash_llm_ros.store.geometry import (
    ATTENTION_SECTIONS,
    SectionSpec,
    head_section,
    spec_sections,
)
from flash_llm_ros.store.writer import ATTENTION_CODECS

# Squared error relative to the rows: 4-bit sources stay below 1e-5, others reach 5e-3.
_NOTHING_LOST = 1e-4
_LOOKED_AT = 256        # rows of a matrix that tell whether it has more than 4 bits
# Matrices whose rows a section's rows are. The down columns of bundles run across the source's
# blocks: they lose.
_MATRICES = {'gate_up': ('layers.{}.gate', 'layers.{}.up'), 'down': ('layers.{}.down',),
             'qkv': ('layers.{}.q', 'layers.{}.k', 'layers.{}.v'), 'o': ('layers.{}.o',),
             'conv_in': ('layers.{}.conv_in',), 'conv_out': ('layers.{}.conv_out',),
             'embedding': ('embedding',), 'head': ('head',)}
_EXPERT_MATRICES = {'expert_gate_up': ('layers.{}.expert_gate', 'layers.{}.expert_up'),
                    'expert_down': ('layers.{}.expert_down',)}


class SectionFormats:
    """The codecs of all sections in file order: `first`, what is sure, then the `chosen` ones.

    With int4 neurons a section is int4 where its matrices have no more to keep (a GGUF of 4 bits).
    Others are written in int8 first, and may stay so, or are rounded again for the inputs that they
    meet. An embedding that is not the head, of which a token needs one row, and what every token
    uses beside experts are not tried: they stay int8, unless any loss is allowed. Attention's have
    the format of `resident`. Experts are all int4: they are what must be small; or mxfp4, where the
    checkpoint has them so.
    """

    def __init__(self, checkpoint: Checkpoint, layout: str, resident: str,
                 options: ConversionOptions) -> None:
        """`resident`: q8, q4 or fp32. FieldError where `bytes_per_token` cannot be kept."""
        self._checkpoint, self._resident = checkpoint, resident
        self._neurons, self._loss = options.neurons, options.loss
        self.specs = spec_sections(layout, checkpoint.spec)
        formats = [self._formats(section) for section in self.specs]
        self.first = tuple(first for first, _ in formats)
        # Of sections that are to be rounded again: what they may get, the fewest bytes first.
        self.candidates = {index: names for index, (_, names) in enumerate(formats) if names}
        self._most_bytes = None
        if options.bytes_per_token is not None:
            self._check_share(options.bytes_per_token)

    @property
    def compensated(self) -> list[int]:
        """Sections of rows that are multiplied with inputs: those that are to be rounded for these.

        Down columns of bundles are added.
        """
        return [index for index in self.candidates if self.specs[index].name != 'bundle']

    @property
    def measured(self) -> list[int]:
        """Sections that are to be tried."""
        return [index for index, names in self.candidates.items() if len(names) > 1]

    def rounded(self, index: int) -> tuple[str, ...]:
        """The candidates that a section was not written in first, or not for its inputs."""
        names = self.candidates[index]
        return names[:-1] if len(names) > 1 else names

    def chosen(self, divergences: Mapping[tuple[int, str], float]) -> tuple[str, ...]:
        """All codecs, by what each of the `measured` sections diverges in each of its candidates.

        The last one, which a section was written in first, diverges by nothing.
        """
        frontier = Frontier.of([[Candidate(self.bytes(index, name),
                                           divergences.get((index, name), 0.0))
                                 for name in names] for index, names in self.candidates.items()])
        found = (frontier.within_loss(self._loss) if self._most_bytes is None else
                 frontier.within_bytes(self._most_bytes))
        codecs = list(self.first)
        for (index, names), choice in zip(self.candidates.items(), found, strict=True):
            codecs[index] = names[choice]
        return tuple(codecs)

    def _formats(self, section: SectionSpec) -> tuple[str, tuple[str, ...]]:
        """What a section is written in first, and its candidates; none where that is sure."""
        spec = self._checkpoint.spec
        if section.name in ATTENTION_SECTIONS:
            first = ATTENTION_CODECS[self._resident]
            again = self._neurons == first == 'int4' and loses_in_int4(self._checkpoint, section)
            return first, ('int4',) if again else ()
        if self._neurons != 'int4':
            return self._neurons, ()
        if section.copies > 1:
            return 'mxfp4' if _is_mxfp4(self._checkpoint, section) else 'int4', ()
        if not loses_in_int4(self._checkpoint, section):
            return 'int4', ()
        if section.name != head_section(spec) and (section.layer < 0 or spec.feed_forward.experts):
            return 'int4' if self._loss == np.inf else 'int8', ()
        return 'int8', ('int4',) if self._loss == np.inf else ('int4', 'int8')

    def _check_share(self, share: float) -> None:
        """Of what a token reads; the embedding is, where it is not the head, a row."""
        spec = self._checkpoint.spec
        check(spec.feed_forward.experts is None, 'bytes_per_token', share,
              'left out for a mixture of experts, which are all int4')
        read = [index for index, section in enumerate(self.specs)
                if section.layer >= 0 or section.name == head_section(spec)]
        int4 = sum(self.bytes(index, 'int4') for index in read)
        fixed = sum(self.bytes(index, self.first[index]) for index in read
                    if index not in self.candidates)
        least = fixed + sum(self.bytes(index, names[0])
                            for index, names in self.candidates.items())
        check(share * int4 >= least, 'bytes_per_token', share,
              f'at least {np.ceil(1000 * least / int4) / 1000:g}, where all neurons are int4')
        self._most_bytes = int(share * int4) - fixed

    def bytes(self, index: int, codec: str) -> int:
        """Of a section in a codec; of experts one."""
        section = self.specs[index]
        return row_codec(codec, section.dim).row_bytes * section.rows * section.bundles


def loses_in_int4(checkpoint: Checkpoint, section: SectionSpec) -> bool:
    """Whether its matrices have more to keep, by the first rows of each."""
    if section.name not in _MATRICES:
        return True
    return any(_error(checkpoint.rows(name.format(section.layer), 0, _LOOKED_AT)) > _NOTHING_LOST
               for name in _MATRICES[section.name])


def _is_mxfp4(checkpoint: Checkpoint, section: SectionSpec) -> bool:
    """Whether experts are such that MXFP4 loses nothing, by the first one of a layer."""
    codec = row_codec('mxfp4', section.dim)
    some = (checkpoint.rows(name.format(section.layer), 0, 1)[0, :_LOOKED_AT]
            for name in _EXPERT_MATRICES[section.name])
    return all(np.array_equal(codec.decode(codec.encode(rows)), rows) for rows in some)


def _error(rows: Array) -> float:
    """Squared error of int4 rows relative to their squares; 1 where they do not fit."""
    codec = row_codec('int4', rows.shape[1])
    try:
        lost = codec.decode(codec.encode(rows)) - rows
    except ValueError:
        return 1.0          # writing or trying them says what is wrong
    size = np.square(rows, dtype=np.float64).sum()
    return float(np.square(lost, dtype=np.float64).sum() / size) if size else 0.0
