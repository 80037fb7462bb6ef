"""Stores whose sections have different codecs: which ones are chosen, and what they compute."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import itertools
import math
from pathlib import Path
import re

from family_checkpoints import write_fatrelu, write_opt
from hypothesis import given
from hypothesis import strategies as st
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_checkpoint import converted, write_checkpoint
import torch
from transformers import AutoModelForCausalLM

from bench.quality.fidelity import engine_logits, mean_divergence
from flash_llm_ros.checkpoint.open import open_checkpoint
from flash_llm_ros.convert.calibration_text import default_text
from flash_llm_ros.convert.codec_choice import Candidate, Frontier
from flash_llm_ros.convert.conversion import convert
from flash_llm_ros.convert.options import ConversionOptions
from flash_llm_ros.convert.rounding_trial import RoundingTrial
from flash_llm_ros.convert.section_formats import SectionFormats
from flash_llm_ros.engine import Engine, EngineConfig
from flash_llm_ros.store.codec import row_codec
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.neuron_reader import NeuronReader
from flash_llm_ros.store.stored_weights import bundles
from flash_llm_ros.store.writer import StoreFormat, StoreWriter

TOKENS = np.arange(20, 84)
ATTENTION = ('qkv', 'o')        # whose format is not the neurons'
PARTS = {'qkv': ('self_attn.q_proj', 'self_attn.k_proj', 'self_attn.v_proj'),
         'o': ('self_attn.o_proj',), 'gate_up': ('mlp.gate_proj', 'mlp.up_proj'),
         'down': ('mlp.down_proj',), 'bundle': ('mlp.gate_proj', 'mlp.up_proj', 'mlp.down_proj')}


def quiet(what: str, done: int, total: int) -> None:
    pass


def written(checkpoint: Path, target: Path, layout: str, codecs: str | tuple[str, ...]
            ) -> FlashStore:
    form = StoreFormat(layout, codecs, 'fp32')
    with StoreWriter(open_checkpoint(checkpoint), target, form, quiet) as writer:
        writer.write()
        writer.publish()
    return FlashStore.open(target)


@contextmanager
def opened(store: FlashStore, **options: object) -> Iterator[Engine]:
    engine = Engine.open(EngineConfig(store.path, options.pop('budget', 40_000_000),
                                      lock_memory=False, context_length=256, **options))
    try:
        yield engine
    finally:
        engine.close()


def half_precision(checkpoint: Path) -> Path:
    """Weights that fp16 rows hold as they are."""
    tensors = {name: rows.astype(np.float16).astype(np.float32)
               for name, rows in load_file(checkpoint / 'model.safetensors').items()}
    save_file(tensors, checkpoint / 'model.safetensors', metadata={'format': 'pt'})
    return checkpoint


def four_bit_layers(checkpoint: Path, parts: tuple[str, ...] = ('gate_proj', 'up_proj')) -> None:
    """Rows of these matrices as a source of 4-bit blocks has them."""
    tensors = load_file(checkpoint / 'model.safetensors')
    for name, rows in tensors.items():
        if any(part in name for part in parts):
            codec = row_codec('int4', rows.shape[1])
            tensors[name] = codec.decode(codec.encode(rows))
    save_file(tensors, checkpoint / 'model.safetensors', metadata={'format': 'pt'})


def rounded_reference(checkpoint: Path, store: FlashStore) -> AutoModelForCausalLM:
    """transformers with every matrix as this store's codecs decode it."""
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    names = {'embedding': 'model.embed_tokens.weight', 'head': 'lm_head.weight'}
    with torch.no_grad():
        for section in store.manifest.geometry.sections:
            parts = ([names[section.name]] if section.layer < 0 else
                     [f'model.layers.{section.layer}.{part}.weight'
                      for part in PARTS[section.name]])
            for name in parts:
                weight = model.get_parameter(name)
                columns = section.name == 'bundle' and 'down_proj' in name
                rows = weight.T if columns else weight
                codec = row_codec(section.codec.name, rows.shape[1])
                found = codec.decode(codec.encode(np.ascontiguousarray(rows.numpy())))
                weight.copy_(torch.from_numpy(found.T if columns else found))
    return model


@pytest.mark.parametrize(('layout', 'changes', 'codecs'), [
    ('split', {}, ('int4', 'int8', 'int4', 'fp16', 'fp16', 'int4', 'int4', 'int8')),
    ('split', {'tie_word_embeddings': True},
     ('int4', 'int4', 'int4', 'int8', 'int8', 'int4', 'int8')),
    ('bundled', {'hidden_act': 'relu'}, ('int8', 'int4', 'fp16', 'int8', 'int4')),
])
def test_a_mixed_store_against_transformers(tmp_path: Path, layout: str, changes: dict,
                                            codecs: tuple[str, ...]) -> None:
    checkpoint = write_checkpoint(tmp_path / 'checkpoint', **changes)
    of_layer = len(codecs) // 3     # and behind them the embedding and the head
    layers = [codecs[first:first + of_layer] for first in range(0, 3 * of_layer, of_layer)]
    store = written(checkpoint, tmp_path / 'store', layout, (
        *(codec for layer in layers for codec in ('int8', 'int8', *layer)),
        *codecs[3 * of_layer:]))
    found = [(section.name in ATTENTION, section.codec.name)
             for section in store.manifest.geometry.sections]
    assert tuple(codec for attention, codec in found if not attention) == codecs
    assert {codec for attention, codec in found if attention} == {'fp16'}
    with torch.no_grad():
        expected = rounded_reference(checkpoint, store)(torch.from_numpy(TOKENS[None])
                                                        ).logits[0].numpy()
    for budget in (10_000_000, 40_000_000):      # streamed and pinned
        with opened(store, budget=budget) as engine:
            logits = engine_logits(engine, TOKENS.tolist())
            one_by_one = engine_logits(engine, TOKENS.tolist(), dense=False)
        # What is left is how inputs are rounded: to 8 bits for int4 rows.
        assert np.abs(logits - expected).max() < 0.08 * expected.std()
        assert np.corrcoef(logits.ravel(), expected.ravel())[0, 1] > 0.9995
        assert np.abs(one_by_one - logits).max() < 0.05 * expected.std()


@pytest.fixture(scope='module')
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    checkpoint = write_checkpoint(tmp_path_factory.mktemp('source') / 'checkpoint',
                                  tie_word_embeddings=True)
    four_bit_layers(checkpoint)
    return checkpoint


def formats_of(checkpoint: Path, resident: str = 'fp32', **options: object) -> SectionFormats:
    return SectionFormats(open_checkpoint(checkpoint), 'split', resident,
                          ConversionOptions(**{'neurons': 'int4', **options}))


def test_what_has_four_bits_already_needs_no_measurement(source: Path, tmp_path: Path) -> None:
    both = ('int4', 'int8')
    formats = formats_of(source)
    assert formats.first == ('fp16', 'fp16', 'int4', 'int8') * 3 + ('int8',)
    assert formats.candidates == dict.fromkeys((3, 7, 11, 12), both)
    four_bit_layers(write_checkpoint(tmp_path / 'down'), ('down_proj',))
    formats = formats_of(tmp_path / 'down')
    assert formats.first == ('fp16', 'fp16', 'int8', 'int4') * 3 + ('int8',) * 2
    # What is sure to be int4 is rounded for the model's own inputs, which are not there yet.
    smallest = formats_of(source, 'q4', most_loss=math.inf)
    assert smallest.first == ('int4', 'int4', 'int4', 'int8') * 3 + ('int8',)
    assert smallest.candidates == dict.fromkeys((0, 1, 3, 4, 5, 7, 8, 9, 11, 12), ('int4',))
    assert smallest.measured == []
    whole = formats_of(source, 'q4', neurons='int8')
    assert whole.first == ('int4', 'int4', 'int8', 'int8') * 3 + ('int8',)
    assert whole.candidates == {}
    # Not the embedding, of which a token needs one row.
    formats = formats_of(write_checkpoint(tmp_path / 'untied'), 'q8')
    assert formats.first == ('int8',) * 14
    assert formats.candidates == dict.fromkeys((2, 3, 6, 7, 10, 11, 13), both)


@pytest.mark.parametrize(('layout', 'changes', 'name', 'layer'), [
    ('split', {}, 'down', 0), ('split', {'tie_word_embeddings': True}, 'down', 2),
    ('split', {}, 'gate_up', 1), ('bundled', {'hidden_act': 'relu'}, 'bundle', 1),
    ('split', {}, 'head', -1), ('split', {'tie_word_embeddings': True}, 'embedding', -1),
])
def test_a_trial_is_what_the_store_then_loses(tmp_path: Path, layout: str, changes: dict,
                                              name: str, layer: int) -> None:
    """What was measured beforehand is what a store with the section in int4 diverges by."""
    checkpoint = half_precision(write_checkpoint(tmp_path / 'checkpoint', **changes))
    store = written(checkpoint, tmp_path / 'store', layout, 'fp16')     # rounds no inputs
    tried = store.manifest.geometry.section(name, layer)
    codecs = tuple('int4' if section == tried else 'fp16'
                   for section in store.manifest.geometry.sections)
    with NeuronReader(store) as reader:
        rows = reader.bundles(name, layer)
    encoded = row_codec('int4', rows.shape[2]).encode(rows.reshape(-1, rows.shape[2]))
    with opened(store) as engine:
        exact = engine_logits(engine, TOKENS.tolist())
        foreseen = RoundingTrial(store, engine, TOKENS).divergence(
            tried, 'int4', encoded.reshape(len(rows), -1))
        assert np.array_equal(engine_logits(engine, TOKENS.tolist()), exact)    # all put back
    with opened(written(checkpoint, tmp_path / 'rounded', layout, codecs)) as engine:
        found = mean_divergence(exact, engine_logits(engine, TOKENS.tolist()))
    assert found > 1e-5 and foreseen == pytest.approx(found, rel=0.02)


@given(st.lists(st.lists(st.builds(Candidate, st.integers(1, 50), st.floats(0, 1)),
                         min_size=1, max_size=3), max_size=5), st.floats(0, 2),
       st.integers(0, 200))
def test_the_choice_is_the_best_of_all(sections: list[list[Candidate]], loss: float, most: int
                                       ) -> None:
    every = [(sum(each.bytes for each in choice), sum(each.divergence for each in choice))
             for choice in itertools.product(*sections)]
    frontier = Frontier.of(sections)

    def sums(chosen: list[int]) -> tuple[int, float]:
        picked = [candidates[index] for candidates, index in zip(sections, chosen, strict=True)]
        return sum(each.bytes for each in picked), sum(each.divergence for each in picked)

    enough = [size for size, divergence in every if divergence <= loss]
    size, divergence = sums(frontier.within_loss(loss))
    if enough:
        assert divergence <= loss and size == min(enough)
    else:
        assert divergence == min(divergence for _, divergence in every)
    possible = [divergence for size, divergence in every if size <= most]
    if possible:
        size, divergence = sums(frontier.within_bytes(most))
        assert size <= most and divergence == pytest.approx(min(possible), abs=1e-12)
    else:
        with pytest.raises(ValueError, match=f'{most} bytes are too few'):
            frontier.within_bytes(most)


def layer_matrices(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    """By the label of the section that they are rows of."""
    return {f'{name} of layer {layer}': matrix for layer, block in enumerate(model.model.layers)
            for name, matrix in (('qkv', block.self_attn.q_proj), ('o', block.self_attn.o_proj),
                                 ('gate_up', block.mlp.gate_proj), ('down', block.mlp.down_proj))}


def test_all_rows_are_rounded_for_what_they_meet(tmp_path: Path) -> None:
    """What products miss on inputs that transformers has, of a text that was not learnt from."""
    checkpoint = write_checkpoint(tmp_path / 'checkpoint', intermediate_size=72)
    store = converted(checkpoint, tmp_path / 'store', neurons='int4', most_loss=math.inf,
                      resident='q4')
    assert store.manifest.geometry.formats_text == 'int4'
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    matrices, met = layer_matrices(model) | {'head': model.lm_head}, {}
    for label, matrix in matrices.items():
        matrix.register_forward_hook(lambda module, inputs, output, label=label: met.update(
            {label: inputs[0][0].double().numpy()}))
    with opened(store) as engine:
        tokens = engine.tokenize(default_text())[:2000]
    with torch.no_grad():
        model(torch.tensor([tokens]))
    source = open_checkpoint(checkpoint)
    with NeuronReader(store) as reader:
        for section in store.manifest.geometry.sections:
            if section.name == 'embedding':
                continue
            rows = np.concatenate(list(bundles(source.spec, source.rows, section, 0)))
            flat = rows.reshape(-1, section.codec.dim)
            plain = section.codec.decode(section.codec.encode(flat))
            found = reader.bundles(section.name, section.layer).reshape(flat.shape)
            missed, before = (np.linalg.norm(met[section.label] @ (each - flat).T.astype(float))
                              for each in (found, plain))
            assert missed < 0.97 * before, section.label


def test_convert_keeps_what_costs_most(source: Path, tmp_path: Path) -> None:
    """In int8; and a share of bytes that has room for as much gives the same store."""
    done = []
    options = {'neurons': 'int4', 'resident': 'fp32'}
    smallest = converted(source, tmp_path / 'smallest', most_loss=math.inf, **options)
    store = convert(source, tmp_path / 'store', ConversionOptions(most_loss=0.0003, **options),
                    lambda what, at, total: done.append(what))
    sections = store.manifest.geometry.sections
    kept = [section for section in sections if section.codec.name == 'int8']
    assert 0 < len(kept) < 4 and done.count('trying fewer bits') == 4
    assert done.count('rounding') == 4 and not list(tmp_path.rglob('recording'))
    store.verify()
    read = [sum(section.bundles * section.bundle_bytes for section in sections)
            for sections in (sections, smallest.manifest.geometry.sections)]
    int4 = sum(row_codec('int4', section.codec.dim).row_bytes * section.rows * section.bundles
               for section in sections)
    again = converted(source, tmp_path / 'again', bytes_per_token=read[0] / int4, **options)
    assert again.neurons.read_bytes() == store.neurons.read_bytes()
    with pytest.raises(ValueError, match='bytes_per_token') as error:
        converted(source, tmp_path / 'none', bytes_per_token=read[1] / int4 - 0.01, **options)
    least = re.search(r'at least ([0-9.]+),', str(error.value))
    assert float(least[1]) == pytest.approx(read[1] / int4, abs=2e-3)
    # What was copied is what its codec makes of the checkpoint.
    checkpoint = open_checkpoint(source)
    with NeuronReader(store) as reader:
        for section in sections:
            if section in kept or section.name not in ('down', 'embedding'):
                rows = np.concatenate(list(bundles(checkpoint.spec, checkpoint.rows, section, 0)))
                flat = section.codec.encode(rows.reshape(-1, section.codec.dim))
                assert np.array_equal(reader.bundles(section.name, section.layer),
                                      section.codec.decode(flat).reshape(rows.shape))


@pytest.mark.parametrize('write', [write_opt, write_fatrelu])
def test_relu_families_stay_within_the_loss(tmp_path: Path, write: Callable[[Path], Path]
                                            ) -> None:
    checkpoint = write(tmp_path / 'checkpoint')
    store = converted(checkpoint, tmp_path / 'store', neurons='int4', most_loss=0.01,
                      resident='fp32', calibrate=False)
    codecs = {section.codec.name for section in store.manifest.geometry.sections
              if section.name not in ATTENTION}
    assert codecs == {'int4', 'int8'}
    with opened(store) as engine:
        found = engine_logits(engine, TOKENS.tolist())
    whole = converted(checkpoint, tmp_path / 'whole', neurons='fp16', calibrate=False)
    with opened(whole) as engine:
        assert mean_divergence(engine_logits(engine, TOKENS.tolist()), found) < 0.02
