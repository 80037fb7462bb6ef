"""Stores whose sections have different codecs: which ones are chosen, and what they compute."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
import math
from pathlib import Path

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
from flash_llm_ros.convert.calibration import opened as opened_to_calibrate
from flash_llm_ros.convert.calibration_text import default_text
from flash_llm_ros.convert.conversion import convert
from flash_llm_ros.convert.head_inputs import head_inputs_root
from flash_llm_ros.convert.options import ConversionOptions
from flash_llm_ros.convert.rounding_trial import RoundingTrial, int4_rounded
from flash_llm_ros.convert.section_formats import Price, SectionFormats, worth_keeping
from flash_llm_ros.engine import Engine, EngineConfig
from flash_llm_ros.store.codec import row_codec
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.neuron_reader import NeuronReader
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
            tensors[name] = int4_rounded(rows)
    save_file(tensors, checkpoint / 'model.safetensors', metadata={'format': 'pt'})


def rounded_reference(checkpoint: Path, store: FlashStore, head_root: np.ndarray | None = None
                      ) -> AutoModelForCausalLM:
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
                root = head_root if section.layer < 0 else None
                found = codec.decode(codec.encode(np.ascontiguousarray(rows.numpy()), root))
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


@pytest.fixture(scope='module')
def first(source: Path) -> FlashStore:
    """What is written before anything is measured."""
    formats = SectionFormats(open_checkpoint(source), 'split', 'int4', 0.02)
    return written(source, source.parent / 'first', 'split', formats.first)


def test_what_has_four_bits_already_needs_no_measurement(source: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(source)
    formats = SectionFormats(checkpoint, 'split', 'int4', 0.02)
    assert formats.first == ('int4', 'int4', 'int4', 'int8') * 3 + ('int8',)
    assert formats.undecided == [3, 7, 11, 12]
    four_bit_layers(write_checkpoint(tmp_path / 'down'), ('down_proj',))
    formats = SectionFormats(open_checkpoint(tmp_path / 'down'), 'split', 'int4', 0.02)
    assert formats.first == ('int4', 'int4', 'int8', 'int4') * 3 + ('int8',) * 2
    smallest = SectionFormats(checkpoint, 'split', 'int4', math.inf)
    # The head is rounded for the model's own inputs, which are not there yet.
    assert smallest.first == ('int4',) * 12 + ('int8',) and smallest.undecided == [12]
    whole = SectionFormats(checkpoint, 'split', 'int8', 0.02)
    assert whole.first == ('int8',) * 13 and whole.undecided == []
    untied = open_checkpoint(write_checkpoint(tmp_path / 'untied'))
    formats = SectionFormats(untied, 'split', 'int4', 0.02)
    assert formats.first == ('int4', 'int4', 'int8', 'int8') * 3 + ('int8',) * 2
    # Not the embedding, of which a token needs one row.
    assert formats.undecided == [2, 3, 6, 7, 10, 11, 13]


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
    with opened(store) as engine:
        exact = engine_logits(engine, TOKENS.tolist())
        foreseen = RoundingTrial(store, engine, TOKENS).divergence(tried)
        assert np.array_equal(engine_logits(engine, TOKENS.tolist()), exact)    # all put back
    with opened(written(checkpoint, tmp_path / 'rounded', layout, codecs)) as engine:
        found = mean_divergence(exact, engine_logits(engine, TOKENS.tolist()))
    assert found > 1e-5 and foreseen == pytest.approx(found, rel=0.02)


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1)), max_size=9), st.floats(0, 2))
def test_what_is_kept_is_enough_and_needed(items: list[tuple[int, float]], loss: float) -> None:
    prices = {index: Price(*item) for index, item in enumerate(items)}
    kept = worth_keeping(prices, loss)
    rest = sum(price.divergence for index, price in prices.items() if index not in kept)
    assert rest <= loss + 1e-9 or len(kept) == len(prices)
    for index in kept:
        assert rest + prices[index].divergence > loss - 1e-9


def test_what_saves_most_per_byte_is_kept() -> None:
    prices = {0: Price(10, 0.030), 1: Price(1, 0.010), 2: Price(1, 0.004), 3: Price(1, 0.001)}
    assert worth_keeping(prices, 0.05) == set()
    assert worth_keeping(prices, 0.035) == {1}
    assert worth_keeping(prices, 0.031) == {1, 2}
    assert worth_keeping(prices, 0.006) == {0, 1}           # with 0, 2 is not needed any more
    assert worth_keeping(prices, 0.0) == {0, 1, 2, 3}


def test_convert_keeps_what_costs_most(source: Path, first: FlashStore, tmp_path: Path) -> None:
    with opened_to_calibrate(first) as engine:
        tokens = np.array(engine.tokenize(default_text())[:256 + 4096], np.int64)
        head_root = head_inputs_root(engine, tokens[256:])
        trial = RoundingTrial(first, engine, tokens[:256], head_root)
        sections = first.manifest.geometry.sections
        price = {index: trial.divergence(sections[index]) for index in (3, 7, 11, 12)}
    loss = sum(price.values()) - 0.5 * max(price[3], price[7], price[11])
    done = []
    store = convert(source, tmp_path / 'store', ConversionOptions(
        neurons='int4', int4_loss=loss, resident='fp32'),
        lambda what, at, total: done.append(what))
    geometry = store.manifest.geometry
    kept = [section for section in geometry.sections if section.codec.name == 'int8']
    assert len(kept) == 1 and done.count('trying 4 bits') == 4
    assert geometry.file_bytes < first.manifest.geometry.file_bytes
    store.verify()
    # Every row is what its codec makes of the checkpoint, also where bytes were copied.
    reference = rounded_reference(source, store, head_root)
    with NeuronReader(store) as reader:
        for layer in range(3):
            mlp = reference.model.layers[layer].mlp
            down = reader.bundles('down', layer)[:, 0]
            assert np.array_equal(down, mlp.down_proj.weight.detach().numpy())
            gate_up = reader.bundles('gate_up', layer)
            assert np.array_equal(gate_up[:, 0], mlp.gate_proj.weight.detach().numpy())
        head = reader.bundles('embedding')[:, 0]
        assert np.array_equal(head, reference.lm_head.weight.detach().numpy())


@pytest.mark.parametrize('write', [write_opt, write_fatrelu])
def test_relu_families_stay_within_the_loss(tmp_path: Path, write: Callable[[Path], Path]
                                            ) -> None:
    checkpoint = write(tmp_path / 'checkpoint')
    store = converted(checkpoint, tmp_path / 'store', neurons='int4', int4_loss=0.01,
                      resident='fp32', calibrate=False)
    codecs = {section.codec.name for section in store.manifest.geometry.sections
              if section.name not in ATTENTION}
    assert codecs == {'int4', 'int8'}
    with opened(store) as engine:
        found = engine_logits(engine, TOKENS.tolist())
    whole = converted(checkpoint, tmp_path / 'whole', neurons='fp16', calibrate=False)
    with opened(whole) as engine:
        assert mean_divergence(engine_logits(engine, TOKENS.tolist()), found) < 0.02
