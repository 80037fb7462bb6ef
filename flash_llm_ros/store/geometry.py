"""Where every bundle lies in neurons.bin: equal groups, sections of groups, and their sizes."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, NamedTuple

from flash_llm_ros.checked_fields import check, check_choice, check_integers, structured
from flash_llm_ros.model_spec import (
    AttentionSpec,
    ConvolutionSpec,
    ExpertsSpec,
    FeedForwardSpec,
    ModelSpec,
)
from flash_llm_ros.store.codec import CODEC_NAMES, RowCodec, row_codec

CHECKSUM_BYTES = 4
MIN_GROUP_BYTES = 4096
MODEL_WIDE = -1
ROWS_OF = {'qkv': (1,), 'o': (1,), 'conv_in': (1,), 'conv_out': (1,), 'gate_up': (2,),
           'down': (1,), 'bundle': (2, 3), 'expert_gate_up': (2,), 'expert_down': (1,),
           'embedding': (1,), 'head': (1,)}
CONVOLUTION_SECTIONS = ('conv_in', 'conv_out')      # of layers with a convolution instead
# Of models whose attention the core computes.
ATTENTION_SECTIONS = ('qkv', 'o', *CONVOLUTION_SECTIONS)
DENSE_SECTIONS = ('gate_up', 'down')    # of blocks that every token uses
EXPERT_SECTIONS = ('expert_gate_up', 'expert_down')
_LAYER_SECTIONS = {'split': DENSE_SECTIONS, 'bundled': ('bundle',)}
LAYOUTS = tuple(_LAYER_SECTIONS)
_MAX_GROUP_BYTES = 256 * 1024
# The window's tables take 12 bytes for each group of the file and 31 for each of its slots: less
# than 0.5 % of a window that holds a tenth of the file, when groups are so long.
_EXPERT_GROUP_BYTES = 32 * 1024
_EXPERT_GROUPS = 32         # at least in an expert that is smaller
_MAX_GROUPS = 2**31 - 1


class SectionSpec(NamedTuple):
    """What has to be stored, before it is known how.

    ``bundles`` bundles of ``rows`` rows of ``dim`` values; ``copies`` times, once for each expert.
    ``biased`` rows have a value more.
    """

    name: str
    layer: int
    rows: int
    bundles: int
    dim: int
    copies: int = 1
    biased: bool = False


@dataclass(frozen=True)
class Section:
    """All bundles of one kind of one layer (-1: model-wide), in consecutive groups.

    A layer's experts are ``copies`` of its sections: all of the first expert's, all of the second
    one's, and so on. A copy begins ``stride`` groups behind the one before.
    """

    name: str
    layer: int
    rows: int
    bundles: int
    bundles_per_group: int
    first_group: int
    codec: RowCodec
    copies: int = 1
    stride: int = 0             # groups; 0 without copies

    @property
    def spec(self) -> SectionSpec:
        return SectionSpec(self.name, self.layer, self.rows, self.bundles, self.codec.dim,
                           self.copies, self.codec.biased)

    @property
    def groups(self) -> int:
        """Of one copy."""
        return -(-self.bundles // self.bundles_per_group)

    @property
    def all_groups(self) -> int:
        return self.copies * self.groups

    @property
    def end_group(self) -> int:
        """One past the last copy's last group."""
        return self.first_group + (self.copies - 1) * self.stride + self.groups

    @property
    def bundle_bytes(self) -> int:
        return self.rows * self.codec.row_bytes

    @property
    def row_values(self) -> int:
        """The bias of a row included."""
        return self.codec.dim + self.codec.biased

    @property
    def label(self) -> str:
        """For messages: ``gate_up of layer 3``, or ``embedding``."""
        return self.name if self.layer == MODEL_WIDE else f'{self.name} of layer {self.layer}'


@dataclass(frozen=True)
class Geometry:
    """Everything needed to find a row in neurons.bin; ValueError when it contradicts itself.

    ``dim`` is the model's hidden size, the length of all rows but those of o and down sections.
    """

    block: int
    group_bytes: int
    dim: int
    sections: tuple[Section, ...]

    def __post_init__(self) -> None:
        check_integers(self, ['block', 'group_bytes', 'dim'])
        _check_block(self.block)
        check(self.group_bytes % self.block == 0, 'group_bytes', self.group_bytes,
              f'a multiple of block ({self.block})')
        check(len(self.sections) > 0, 'sections', self.sections, 'at least one section')
        seen = set()
        places = _places((s.layer, s.copies, s.groups) for s in self.sections)
        for index, (section, place) in enumerate(zip(self.sections, places, strict=True)):
            self._check_section(f'sections[{index}]', section, *place)
            check((section.name, section.layer) not in seen,
                  f'sections[{index}].name', section.label, 'a section not listed before')
            seen.add((section.name, section.layer))
        check(self.groups <= _MAX_GROUPS, 'sections', self.groups,
              f'of at most {_MAX_GROUPS} groups')

    def _check_section(self, where: str, section: Section, first_group: int, stride: int) -> None:
        rows = ROWS_OF[section.name]
        check(section.rows in rows, f'{where}.rows', section.rows,
              f'{" or ".join(map(str, rows))} for {section.name}')
        check(section.codec.dim == self.dim or section.name in ('o', 'down', 'expert_down'),
              f'{where}.dim', section.codec.dim,
              f'{self.dim}, as in all sections but o and down')
        check(section.copies == 1 or section.name in EXPERT_SECTIONS, f'{where}.copies',
              section.copies, f'1 for {section.name}')
        check(not section.codec.biased or section.name in EXPERT_SECTIONS, f'{where}.biased',
              section.codec.biased, f'false for {section.name}')
        used = section.bundles_per_group * section.bundle_bytes + CHECKSUM_BYTES
        check(used <= self.group_bytes, f'{where}.bundles_per_group', section.bundles_per_group,
              f'so few that {used} bytes fit in group_bytes ({self.group_bytes})')
        check(section.first_group == first_group, f'{where}.first_group', section.first_group,
              f'{first_group}, where the section before ends')
        check(section.stride == stride, f'{where}.stride', section.stride, f'{stride} groups')

    @property
    def groups(self) -> int:
        return self.sections[-1].end_group

    @property
    def file_bytes(self) -> int:
        return self.groups * self.group_bytes

    @property
    def waste(self) -> float:
        """Share of the file that is padding or checksum."""
        used = sum(section.copies * section.bundles * section.bundle_bytes
                   for section in self.sections)
        return 1 - used / self.file_bytes

    def runs(self) -> Iterator[tuple[Section, int]]:
        """Every section and copy, in the order of the file."""
        for _, block in groupby(self.sections, lambda section: (section.layer, section.copies)):
            sections = list(block)
            for copy in range(sections[0].copies):
                yield from ((section, copy) for section in sections)

    def section(self, name: str, layer: int = MODEL_WIDE) -> Section:
        """The section called ``name`` of ``layer``; KeyError if the file has none."""
        for section in self.sections:
            if (section.name, section.layer) == (name, layer):
                return section
        raise KeyError(f'the store has no section {name!r} for layer {layer}')

    def all_layers(self, name: str) -> list[Section]:
        """The sections called ``name`` of all layers that have one."""
        return [section for section in self.sections if section.name == name]

    @property
    def formats(self) -> dict[str, dict[str, int]]:
        """How many sections of each kind are in which codec: {'down': {'int4': 27, 'int8': 3}}."""
        kinds = dict.fromkeys(section.name for section in self.sections)
        return {kind: dict(Counter(section.codec.name for section in self.sections
                                   if section.name == kind).most_common()) for kind in kinds}

    @property
    def formats_text(self) -> str:
        """`formats` for people: ``gate_up int4, down int4 (27) and int8 (3), embedding int8``."""
        codecs = {section.codec.name for section in self.sections}
        if len(codecs) == 1:
            return codecs.pop()
        return ', '.join(
            f'{kind} ' + ' and '.join(f'{codec} ({count})' if len(counts) > 1 else codec
                                      for codec, count in counts.items())
            for kind, counts in self.formats.items())

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers and strings for the manifest; a row's bytes follow from codec and dim."""
        return {
            'block': self.block, 'group_bytes': self.group_bytes, 'dim': self.dim,
            'sections': [_plain(section) for section in self.sections],
        }

    @classmethod
    def from_plain(cls, data: Any) -> 'Geometry':
        """The inverse of to_dict; FieldError."""
        plain = structured(_PlainGeometry, data)
        return cls(plain.block, plain.group_bytes, plain.dim,
                   tuple(section.with_codec() for section in plain.sections))


@dataclass(frozen=True)
class _PlainSection:
    """A section as the manifest has it, and what is right of it alone."""

    name: str
    layer: int
    rows: int
    bundles: int
    bundles_per_group: int
    first_group: int
    codec: str
    dim: int
    copies: int = 1
    stride: int = 0
    biased: bool = False

    def __post_init__(self) -> None:
        check_choice(self, 'name', ROWS_OF)
        check_choice(self, 'codec', CODEC_NAMES)
        check_integers(self, ['layer'], least=MODEL_WIDE)
        check_integers(self, ['bundles', 'bundles_per_group', 'dim', 'copies'], most=_MAX_GROUPS)

    def with_codec(self) -> Section:
        fields = vars(self).copy()
        codec = row_codec(self.codec, fields.pop('dim'), fields.pop('biased'))
        return Section(**fields | {'codec': codec})


@dataclass(frozen=True)
class _PlainGeometry:
    """A geometry as the manifest has it."""

    block: int
    group_bytes: int
    dim: int
    sections: tuple[_PlainSection, ...]


def _plain(section: Section) -> dict[str, Any]:
    plain = vars(section) | {'codec': section.codec.name, 'dim': section.codec.dim}
    if section.copies == 1:
        del plain['copies'], plain['stride']
    if section.codec.biased:
        plain['biased'] = True
    return plain


def _places(shapes: Iterable[tuple[int, int, int]]) -> list[tuple[int, int]]:
    """First group and stride of each section in file order, given as (layer, copies, groups)."""
    places, next_group = [], 0
    for (_, copies), block in groupby(shapes, lambda shape: shape[:2]):
        lengths = [groups for _, _, groups in block]
        stride = sum(lengths) if copies > 1 else 0
        for groups in lengths:
            places.append((next_group, stride))
            next_group += groups
        next_group += (copies - 1) * stride
    return places


def spec_sections(layout: str, spec: ModelSpec) -> list[SectionSpec]:
    block = spec.feed_forward
    return model_sections(layout, spec.hidden_size, spec.layers, block.size,
                          spec.embedding.vocab_size, spec.embedding.tied, block.gated,
                          block.experts, spec.attention if spec.core_attention else None,
                          spec.convolution)


def head_section(spec: ModelSpec) -> str:
    """The name of the section that the output head is."""
    return 'embedding' if spec.embedding.tied else 'head'


def model_sections(layout: str, dim: int, layers: int, neurons: int, vocabulary: int, tied: bool,
                   gated: bool = True, experts: ExpertsSpec | None = None,
                   attention: AttentionSpec | None = None,
                   convolution: ConvolutionSpec | None = None) -> list[SectionSpec]:
    """The sections of a whole model in file order: layer after layer, then the model-wide ones.

    ``dim`` is the hidden size, ``neurons`` the FFN width, ``tied`` whether the output head is the
    embedding itself, ``gated`` whether neurons have gate rows; without, they are bundled. A down
    section has a row for each of ``dim`` outputs, a bundle the down column of its neuron.
    ``experts``: of so many neurons each; what every token uses beside them is split, too.
    ``attention``: its matrices are sections, too, and those of its layers' ``convolution``.
    """
    check(layout in LAYOUTS, 'layout', layout, f'one of {", ".join(LAYOUTS)}')
    check(gated or layout == 'bundled', 'layout', layout, 'bundled for neurons without gate')
    check(experts is None or layout == 'split', 'layout', layout, 'split for experts')
    block = FeedForwardSpec(neurons, 'silu', gated, experts=experts)
    biased = experts is not None and experts.biased
    shapes: dict[str, tuple[int, ...]] = {
        'bundle': (2 + gated, neurons, dim),
        'expert_gate_up': (2, neurons, dim, experts.count if experts else 0, biased),
        'expert_down': (1, dim, neurons, experts.count if experts else 0, biased)}
    if attention is not None:
        shapes |= {'qkv': (1, attention.qkv_width, dim), 'o': (1, dim, attention.query_width),
                   'conv_in': (1, 3 * dim, dim), 'conv_out': (1, dim, dim)}
    specs = []
    for layer in range(layers):
        always = block.always(layer)
        shapes |= {'gate_up': (2, always, dim), 'down': (1, dim, always)}
        convolves = convolution is not None and layer in convolution.layers
        mixing = CONVOLUTION_SECTIONS if convolves else ('qkv', 'o')
        names = [*(mixing if attention is not None else ()),
                 *(_LAYER_SECTIONS[layout] if always else ()),
                 *(EXPERT_SECTIONS if block.routed(layer) else ())]
        specs += [SectionSpec(name, layer, *shapes[name]) for name in names]
    model_wide = ('embedding',) if tied else ('embedding', 'head')
    return specs + [SectionSpec(name, MODEL_WIDE, 1, vocabulary, dim) for name in model_wide]


def plan_geometry(dim: int, codecs: str | Sequence[str], section_specs: Iterable[SectionSpec],
                  block: int = 512, min_group_bytes: int = MIN_GROUP_BYTES,
                  max_waste: float = 0.03) -> Geometry:
    """Choose the smallest group size that wastes less than ``max_waste`` in every section.

    ``codecs``: the name of all sections' codec, or one for each. ``section_specs``:
    (name, layer, rows, bundles, dim, copies, biased) in file order; ``dim`` is the hidden size.
    ``block`` and ``min_group_bytes`` are bytes; experts have longer groups, so that their tables
    stay small.
    The search ends at 256 KiB (or four of the longest bundle); beyond, the size with the least
    waste is taken. ValueError names a field that is wrong.
    """
    specs = [SectionSpec(*spec) for spec in section_specs]
    _check_block(block)
    check(min_group_bytes > 0, 'min_group_bytes', min_group_bytes, 'a positive integer')
    check(len(specs) > 0, 'section_specs', specs, 'at least one section')
    names = [codecs] * len(specs) if isinstance(codecs, str) else list(codecs)
    check(len(names) == len(specs), 'codecs', names, f'one for each of {len(specs)} sections')
    for spec in specs:
        check(spec.bundles > 0, f'{spec.name}.bundles', spec.bundles, 'a positive integer')
    found = [row_codec(name, spec.dim, spec.biased)
             for name, spec in zip(names, specs, strict=True)]
    sizes = [spec.rows * codec.row_bytes for spec, codec in zip(specs, found, strict=True)]
    experts = {(spec.bundles, size) for spec, size in zip(specs, sizes, strict=True)
               if spec.copies > 1}
    group_bytes = _group_bytes(set(sizes), experts, block, min_group_bytes, max_waste)
    per_group = [(group_bytes - CHECKSUM_BYTES) // size for size in sizes]
    places = _places((spec.layer, spec.copies, -(-spec.bundles // each))
                     for spec, each in zip(specs, per_group, strict=True))
    return Geometry(block, group_bytes, dim, tuple(
        Section(*spec[:4], each, first_group, codec, spec.copies, stride)
        for spec, each, codec, (first_group, stride)
        in zip(specs, per_group, found, places, strict=True)))


def _group_bytes(bundle_sizes: set[int], experts: set[tuple[int, int]], block: int, smallest: int,
                 max_waste: float) -> int:
    """``experts``: bundles, and bytes of one, in each section of one: its last group is padded."""
    def waste(size: int) -> float:
        most = max(1 - (size - CHECKSUM_BYTES) // bundle * bundle / size
                   for bundle in bundle_sizes)
        groups = sum(-(-bundles // ((size - CHECKSUM_BYTES) // bundle))
                     for bundles, bundle in experts)
        return max(most, 1 - expert_bytes / (groups * size)) if experts else most

    expert_bytes = sum(bundles * bundle for bundles, bundle in experts)
    smallest = max(smallest, min(_EXPERT_GROUP_BYTES, expert_bytes // _EXPERT_GROUPS))
    longest = max(bundle_sizes) + CHECKSUM_BYTES
    first = -(-max(smallest, longest) // block) * block
    sizes = range(first, max(_MAX_GROUP_BYTES, 4 * longest, first) + 1, block)
    good_enough = (size for size in sizes if waste(size) < max_waste)
    return next(good_enough, None) or min(sizes, key=waste)


def _check_block(block: int) -> None:
    check(block > 0 and block % 512 == 0, 'block', block, 'a positive multiple of 512')
