"""neurons.bin's layout: planned sizes against a brute-force search, and refused manifests."""

import copy

from hypothesis import given, settings
from hypothesis import strategies as st
import pytest

from flash_llm_ros.engine.memory.core import bookkeeping_bytes
from flash_llm_ros.model_spec import ExpertsSpec
from flash_llm_ros.store.geometry import (
    Geometry,
    SectionSpec,
    model_sections,
    plan_geometry,
)


def bytes_of_row(codec, dim):
    blocks = -(-dim // 32)
    return {'fp16': 2 * dim, 'int8': 34 * blocks, 'int4': 18 * blocks + 4}[codec]


def share_wasted(size, bundle):
    return (size - (size - 4) // bundle * bundle) / size


@given(dim=st.integers(1, 9000), data=st.data(),
       layout=st.sampled_from(['split', 'bundled']), layers=st.integers(1, 3),
       neurons=st.integers(1, 300), tied=st.booleans(), block=st.sampled_from([512, 4096]),
       smallest=st.sampled_from([512, 4096, 65536]))
@settings(max_examples=150, deadline=None)
def test_planned_size_is_the_smallest_good_one(dim, data, layout, layers, neurons, tied, block,
                                               smallest):
    specs = model_sections(layout, dim, layers, neurons, 77, tied)
    codecs = [data.draw(st.sampled_from(['int8', 'int4', 'fp16']))] * len(specs)
    if data.draw(st.booleans()):
        codecs = [data.draw(st.sampled_from(['int8', 'int4', 'fp16'])) for _ in specs]
    same = codecs[0] if len(set(codecs)) == 1 else codecs
    geometry = plan_geometry(dim, same, specs, block=block, min_group_bytes=smallest)

    bundles = {bytes_of_row(codec, spec.dim) * spec.rows
               for codec, spec in zip(codecs, specs, strict=True)}
    waste = {size: max(share_wasted(size, bundle) for bundle in bundles)
             for size in range(block, max(256 * 1024, 4 * max(bundles) + 16) + 1, block)
             if size >= smallest and size - 4 >= max(bundles)}
    good = [size for size, wasted in waste.items() if wasted < 0.03]
    if good:
        assert geometry.group_bytes == good[0]
    else:
        assert waste[geometry.group_bytes] == min(waste.values())

    next_group = 0
    for spec, codec, section in zip(specs, codecs, geometry.sections, strict=True):
        assert section.spec == spec and section.codec.dim == spec.dim
        assert section.first_group == next_group
        assert section.codec.name == codec
        assert section.bundle_bytes == bytes_of_row(codec, spec.dim) * spec.rows
        assert (section.bundles_per_group * section.bundle_bytes + 4 <= geometry.group_bytes
                < (section.bundles_per_group + 1) * section.bundle_bytes + 4)
        last = spec.bundles - (section.groups - 1) * section.bundles_per_group
        assert 1 <= last <= section.bundles_per_group
        next_group += section.groups
    assert geometry.groups == next_group
    assert geometry.file_bytes == next_group * geometry.group_bytes
    assert Geometry.from_plain(geometry.to_dict()) == geometry


def test_formats_of_sections():
    specs = model_sections('split', 64, 3, 10, 20, True)
    assert plan_geometry(64, 'int8', specs).formats_text == 'int8'
    mixed = plan_geometry(64, ['int4', 'int8', 'int4', 'int4', 'int4', 'int4', 'int8'], specs)
    assert mixed.formats == {'gate_up': {'int4': 3}, 'down': {'int4': 2, 'int8': 1},
                             'embedding': {'int8': 1}}
    assert mixed.formats_text == 'gate_up int4, down int4 (2) and int8 (1), embedding int8'


def test_the_sections_of_a_model():
    split = model_sections('split', 576, 2, 1536, 49152, tied=False)
    assert [spec[:5] for spec in split] == [
        ('gate_up', 0, 2, 1536, 576), ('down', 0, 1, 576, 1536),
        ('gate_up', 1, 2, 1536, 576), ('down', 1, 1, 576, 1536),
        ('embedding', -1, 1, 49152, 576), ('head', -1, 1, 49152, 576),
    ]
    bundled = model_sections('bundled', 576, 2, 1536, 49152, tied=True)
    assert [spec[:5] for spec in bundled] == [
        ('bundle', 0, 3, 1536, 576), ('bundle', 1, 3, 1536, 576), ('embedding', -1, 1, 49152, 576)]
    ungated = model_sections('bundled', 576, 1, 1536, 49152, tied=True, gated=False)
    assert ungated[0][:5] == ('bundle', 0, 2, 1536, 576)
    experts = model_sections('split', 576, 2, 512, 49152, tied=True, experts=ExpertsSpec(32, 8))
    assert [spec[:6] for spec in experts[2:]] == [
        ('expert_gate_up', 1, 2, 512, 576, 32), ('expert_down', 1, 1, 576, 512, 32),
        ('embedding', -1, 1, 49152, 576, 1)]
    mixed = model_sections('split', 576, 2, 512, 9, tied=True, experts=ExpertsSpec(
        32, 8, shared=100, dense_layers=1, dense_size=900))
    assert [spec[:6] for spec in mixed] == [
        ('gate_up', 0, 2, 900, 576, 1), ('down', 0, 1, 576, 900, 1),
        ('gate_up', 1, 2, 100, 576, 1), ('down', 1, 1, 576, 100, 1),
        ('expert_gate_up', 1, 2, 512, 576, 32), ('expert_down', 1, 1, 576, 512, 32),
        ('embedding', -1, 1, 9, 576, 1)]
    with pytest.raises(ValueError, match="layout is 'bundled'; it must be split"):
        model_sections('bundled', 576, 2, 1536, 49152, tied=True, experts=ExpertsSpec(4, 2))
    with pytest.raises(ValueError, match="layout is 'split-brain'"):
        model_sections('split-brain', 576, 2, 1536, 49152, tied=True)


def test_known_sizes():
    """SmolLM2-135M: rows of 18 blocks of 34 bytes, down rows of 48."""
    geometry = plan_geometry(576, 'int8', model_sections('split', 576, 30, 1536, 49152, True))
    gate_up = geometry.section('gate_up', 29)
    assert gate_up.bundle_bytes == 2 * 612
    assert geometry.group_bytes == 14848
    assert (gate_up.bundles_per_group, geometry.section('down', 0).bundles_per_group) == (12, 9)
    assert geometry.section('embedding').bundles == 49152
    assert 0 < geometry.waste < 0.03
    with pytest.raises(KeyError, match=r'down.*30'):
        geometry.section('down', 30)
    assert gate_up.groups == 128 and gate_up.label == 'gate_up of layer 29'


@pytest.mark.parametrize(('dim', 'layers', 'neurons', 'experts', 'biased', 'group_bytes'), [
    (1024, 24, 512, 32, False, 30_208),         # Granite-3.1-1B-A400M
    (2048, 16, 1024, 64, False, 32_768),        # OLMoE-1B-7B
    (2048, 48, 768, 128, False, 32_768),        # Qwen3-30B-A3B
    (2880, 24, 2880, 32, True, 32_768),         # gpt-oss-20b
])
def test_experts_are_runs_of_groups(dim, layers, neurons, experts, biased, group_bytes):
    """One expert behind the other, each its gate and up rows and then its down rows."""
    specs = model_sections('split', dim, layers, neurons, 50_000, False,
                           experts=ExpertsSpec(experts, 8, biased=biased))
    geometry = plan_geometry(dim, 'int4', specs)
    assert geometry.group_bytes == group_bytes
    assert geometry.section('expert_down', 1).bundle_bytes == (
        bytes_of_row('int4', neurons) + 4 * biased)
    next_group = 0
    for at, (section, expert) in enumerate(geometry.runs()):
        assert section.first_group + expert * section.stride == next_group
        if at < 2 * experts * layers:
            assert (section.name, expert) == (('expert_gate_up', 'expert_down')[at % 2],
                                              at // 2 % experts)
        next_group += section.groups
    assert geometry.groups == next_group
    assert geometry.waste < 0.03
    assert Geometry.from_plain(geometry.to_dict()) == geometry
    # The window's tables, where it holds a tenth of the file.
    slots = geometry.groups // 10
    assert bookkeeping_bytes(geometry, slots) < 0.0051 * slots * geometry.group_bytes


@pytest.fixture
def manifest():
    return plan_geometry(100, 'int8', model_sections('split', 100, 2, 50, 60, True)).to_dict()


def replaced(data, path, value):
    data = copy.deepcopy(data)
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return data


@pytest.mark.parametrize(('path', 'value', 'message'), [
    (['block'], 500, 'block is 500'),
    (['group_bytes'], 0, 'group_bytes is 0'),
    (['group_bytes'], 4100, 'group_bytes is 4100'),
    (['dim'], -1, 'dim is -1'),
    (['codec'], 'int8', r'^codec is unknown'),
    (['sections', 1, 'codec'], 'int7',
     r"sections\[1\].codec is 'int7'; it must be one of int8, int4, fp16"),
    (['sections', 1, 'codec'], 'fp16', r'sections\[1\].bundles_per_group is '),
    (['sections'], [], 'sections is '),
    (['sections', 1, 'name'], 'bottom', r"sections\[1\].name is 'bottom'"),
    (['sections', 2, 'layer'], 0, r"sections\[2\].name is 'gate_up of layer 0'"),
    (['sections', 1, 'layer'], -2, r'sections\[1\].layer is -2'),
    (['sections', 0, 'dim'], 50, r'sections\[0\].dim is 50'),
    (['sections', 1, 'dim'], 0, r'sections\[1\].dim is 0'),
    (['sections', 1, 'dim'], 5000, r'sections\[1\].bundles_per_group is '),
    (['sections', 1, 'rows'], 2, r'sections\[1\].rows is 2'),
    (['sections', 1, 'bundles'], 0, r'sections\[1\].bundles is 0'),
    (['sections', 1, 'bundles'], 5000, r'sections\[2\].first_group is '),
    (['sections', 1, 'bundles_per_group'], 1000, r'sections\[1\].bundles_per_group is 1000'),
    (['sections', 1, 'first_group'], 7, r'sections\[1\].first_group is 7'),
])
def test_wrong_fields_are_named(manifest, path, value, message):
    assert Geometry.from_plain(manifest)
    with pytest.raises(ValueError, match=message):
        Geometry.from_plain(replaced(manifest, path, value))


@pytest.mark.parametrize(('arguments', 'message'), [
    ({'dim': 0}, 'dim is 0'),
    ({'section_specs': [SectionSpec('down', 0, 1, 5, 0)]}, 'dim is 0'),
    ({'section_specs': [SectionSpec('gate_up', 0, 2, 5, 32)]},
     r'sections\[0\].dim is 32; it must be 64, as in all sections but o and down'),
    ({'codecs': 'int4x'}, "codec is 'int4x'"),
    ({'codecs': ['int4', 'int8']}, 'codecs is .* one for each of 1 sections'),
    ({'codecs': ['int7']}, "codec is 'int7'"),
    ({'section_specs': []}, 'section_specs'),
    ({'block': 100}, 'block is 100'),
    ({'min_group_bytes': 0}, 'min_group_bytes is 0'),
    ({'section_specs': [SectionSpec('down', 0, 1, 0, 64)]}, 'bundles is 0'),
    ({'section_specs': [SectionSpec('down', 0, 2, 5, 64)]}, r'sections\[0\].rows is 2'),
])
def test_wrong_plans_are_refused(arguments, message):
    right = {'dim': 64, 'codecs': 'int8', 'section_specs': [SectionSpec('down', 0, 1, 5, 64)]}
    assert plan_geometry(**right)
    with pytest.raises(ValueError, match=message):
        plan_geometry(**{**right, **arguments})
