"""A finished store's tensors against the checkpoint it was made from, and the model they make."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file
from tiny_checkpoint import write_checkpoint
import torch

from bench.quality.fidelity import engine_logits
from flash_llm_ros.calibrate.distillation import SiluBlocks
from flash_llm_ros.calibrate.store_tensors import StoreTensors
from flash_llm_ros.calibrate.torch_model import MATRIX, TorchModel, gated_weights
from flash_llm_ros.checkpoint.open import open_checkpoint
from flash_llm_ros.engine import Engine, EngineConfig
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.writer import StoreFormat, StoreWriter

pytestmark = pytest.mark.timeout(120)
QWEN2 = {'model_type': 'qwen2', 'architectures': ['Qwen2ForCausalLM']}
TIED = {'tie_word_embeddings': True}
UNEVEN = {'hidden_size': 80, 'head_dim': 20, 'intermediate_size': 130}     # no whole blocks
MINICPM = {'model_type': 'minicpm', 'architectures': ['MiniCPMForCausalLM'], 'scale_emb': 3,
           'scale_depth': 1.2, 'dim_model_base': 24}
NAMES = {'embedding': 'model.embed_tokens', 'head': 'lm_head', 'final_norm': 'model.norm'}
PARTS = {'attention_norm': 'input_layernorm', 'ffn_norm': 'post_attention_layernorm',
         **{part: f'self_attn.{part}_proj' for part in 'qkvo'},
         **{part: f'mlp.{part}_proj' for part in ('gate', 'up', 'down')}}


def written(folder: Path, neurons: str, resident: str, **changes: object) -> FlashStore:
    """Beside its checkpoint."""
    layout = 'bundled' if changes.get('hidden_act') == 'relu' else 'split'
    form = StoreFormat(layout, neurons, resident, 'fp32')
    source = open_checkpoint(write_checkpoint(folder / 'checkpoint', seed=8, **changes))
    with StoreWriter(source, folder / 'store', form, lambda what, done, total: None) as writer:
        writer.write()
        writer.publish()
    return FlashStore.open(folder / 'store')


def tensors_of(store: FlashStore) -> dict[str, np.ndarray]:
    """The checkpoint's tensors by their canonical names."""
    found = load_file(store.path.parent / 'checkpoint/model.safetensors')
    named = {name: found.pop(f'{other}.weight') for name, other in NAMES.items()
             if f'{other}.weight' in found}
    for layer in range(3):
        for part, other in PARTS.items():
            for kind, suffix in (('weight', ''), ('bias', '_bias')):
                if (tensor := found.pop(f'model.layers.{layer}.{other}.{kind}', None)) is not None:
                    named[f'layers.{layer}.{part}{suffix}'] = tensor
    assert not found
    return named


def steps_of(rows: np.ndarray, codec: str) -> np.ndarray:
    """Of each value, what neighbouring values of its block would be apart at best; float64."""
    width = 32 if codec in ('int8', 'int4', 'q4') else rows.shape[1]
    steps = np.empty(rows.shape)
    for start in range(0, rows.shape[1], width):
        block = rows[:, start:start + width].astype(np.float64)
        low, high = block.min(1, keepdims=True), block.max(1, keepdims=True)
        steps[:, start:start + width] = ((high - low) / 15 if codec in ('int4', 'q4')
                                         else np.maximum(high, -low) / 127)
    return steps


@pytest.mark.parametrize('changes', [{}, QWEN2, {**QWEN2, **TIED}, UNEVEN])
def test_what_loses_nothing_is_the_checkpoint(tmp_path: Path, changes: dict) -> None:
    store = written(tmp_path, 'fp16', 'fp32', **changes)
    tensors, expected = StoreTensors(store), tensors_of(store)
    assert tensors.spec == store.manifest.model
    assert ('head' in expected) == ('tie_word_embeddings' not in changes)
    for name, rows in expected.items():
        found = tensors.rows(name)
        if name.split('.')[-1] in ('gate', 'up', 'down', 'embedding', 'head'):
            rows = rows.astype(np.float16).astype(np.float32)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, rows, err_msg=name)


@pytest.mark.parametrize(('neurons', 'resident', 'changes'), [
    ('int8', 'q8', {}), ('int8', 'q4', QWEN2), ('int4', 'q8', {**QWEN2, **TIED}),
    ('int4', 'q4', UNEVEN), ('int8', 'q8', {**UNEVEN, **TIED})])
def test_what_is_rounded_stays_within_half_a_step(tmp_path: Path, neurons: str, resident: str,
                                                  changes: dict) -> None:
    """Steps come from the checkpoint's own values. Scales are rounded, too, to 11 bits at least.

    Lines of four bits are fitted to all values of a block, so that the largest may be cut.
    """
    store = written(tmp_path, neurons, resident, **changes)
    tensors = StoreTensors(store)
    for name, rows in tensors_of(store).items():
        found, part = tensors.rows(name), name.split('.')[-1]
        if part.endswith(('norm', '_bias')):
            np.testing.assert_array_equal(found, rows, err_msg=name)
            continue
        codec = resident if part in ('q', 'k', 'v', 'o') else neurons
        if part == 'down':              # its columns are stored as rows
            found, rows = found.T, rows.T
        error, step = np.abs(found - rows), steps_of(rows, codec) + 1e-9
        assert found.shape == rows.shape
        if codec in ('int8', 'q8'):
            assert (error / step).max() < 0.5 + 127 * 2 ** -11, name
        else:
            assert (error / step).max() < 1.25, name
            assert np.sqrt(np.square(error / step).mean()) < 12 ** -0.5 * 1.05, name


@pytest.mark.parametrize(('neurons', 'resident', 'changes'), [
    ('fp16', 'fp32', {}), ('int8', 'q8', {**QWEN2, **TIED}), ('int4', 'q4', QWEN2),
    ('int8', 'q8', {**MINICPM, **TIED})])
def test_the_model_of_these_tensors_is_the_engines(tmp_path: Path, neurons: str, resident: str,
                                                   changes: dict) -> None:
    store = written(tmp_path, neurons, resident, **changes)
    tokens = np.random.default_rng(3).integers(0, 256, 90)
    engine = Engine.open(EngineConfig(store.path, 60_000_000, context_length=128,
                                      lock_memory=False))
    try:
        expected = engine_logits(engine, tokens.tolist())
    finally:
        engine.close()
    tensors = StoreTensors(store)
    model = TorchModel(tensors, 90)
    blocks = SiluBlocks([gated_weights(tensors, layer, MATRIX) for layer in range(3)])
    with torch.no_grad():
        logits = (model.run(torch.from_numpy(tokens)[None], blocks) @ model.head.T)[0].float()
    error = np.abs(logits.numpy() - expected)
    assert error.mean() < 0.02 * expected.std()         # bfloat16, as against transformers
    assert np.corrcoef(logits.numpy().ravel(), expected.ravel())[0, 1] > 0.999


def test_stores_of_earlier_releases_name_their_norms_otherwise(tmp_path: Path) -> None:
    store = written(tmp_path, 'fp16', 'fp32')
    for graph, name in (('layers/01.onnx', 'attention_norm'), ('layers/final.onnx', 'final_norm')):
        model = onnx.load_model_from_string((store.path / graph).read_bytes())
        for tensor in model.graph.initializer:
            tensor.name = tensor.name.replace('normed.weight', name)
        (store.path / graph).write_bytes(model.SerializeToString())
    expected = tensors_of(store)
    for name in ('layers.1.attention_norm', 'layers.1.ffn_norm', 'final_norm'):
        np.testing.assert_array_equal(StoreTensors(store).rows(name), expected[name])


def test_what_there_is_not(tmp_path: Path) -> None:
    tensors = StoreTensors(written(tmp_path / 'tied', 'int8', 'q8', **TIED))
    for name in ('gate', 'layers.0', 'layers.0.gates', 'layers.0.q_norm', 'layers.0.q_bias', 'head',
                 'layers.0.o_bias', 'layers.3.gate', 'layers.3.q', 'layers.3.ffn_norm'):
        with pytest.raises(KeyError):
            tensors.rows(name)
    relu = written(tmp_path / 'relu', 'int8', 'q8', hidden_act='relu')
    with pytest.raises(ValueError, match='has the bundled layout; it must be split'):
        StoreTensors(relu)
