"""Hugging Face folders: every value against the arrays that were written, every fault by name."""

from collections.abc import Callable
import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_checkpoint import CONFIG, write_checkpoint
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from flash_llm_ros.checkpoint.checkpoint import Checkpoint
from flash_llm_ros.checkpoint.errors import CheckpointError
from flash_llm_ros.checkpoint.open import open_checkpoint
from flash_llm_ros.engine.model.rotary_tables import rotary_tables
from flash_llm_ros.model_spec import (
    AttentionSpec,
    EmbeddingSpec,
    FeedForwardSpec,
    ModelSpec,
    NormSpec,
    PositionSpec,
)

HF_NAMES = {
    'embedding': 'model.embed_tokens.weight', 'final_norm': 'model.norm.weight',
    'head': 'lm_head.weight', 'layers.1.q': 'model.layers.1.self_attn.q_proj.weight',
    'layers.2.k': 'model.layers.2.self_attn.k_proj.weight',
    'layers.0.v': 'model.layers.0.self_attn.v_proj.weight',
    'layers.0.o': 'model.layers.0.self_attn.o_proj.weight',
    'layers.2.gate': 'model.layers.2.mlp.gate_proj.weight',
    'layers.1.up': 'model.layers.1.mlp.up_proj.weight',
    'layers.0.down': 'model.layers.0.mlp.down_proj.weight',
    'layers.1.attention_norm': 'model.layers.1.input_layernorm.weight',
    'layers.1.ffn_norm': 'model.layers.1.post_attention_layernorm.weight',
}
LLAMA3 = {'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0, 'high_freq_factor': 4.0,
          'original_max_position_embeddings': 256}


def edit_json(path: Path, **changes: object) -> None:
    data = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**data, **changes}))


def edit_tensors(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    tensors = load_file(folder / 'model.safetensors')
    change(tensors)
    save_file(tensors, folder / 'model.safetensors')


def shard(folder: Path) -> dict[str, str]:
    """Cut model.safetensors into two shards with an index; returns the weight map."""
    tensors = load_file(folder / 'model.safetensors')
    (folder / 'model.safetensors').unlink()
    files = ('model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors')
    names = sorted(tensors)
    halves = names[::2], names[1::2]
    for file, half in zip(files, halves, strict=True):
        save_file({name: tensors[name] for name in half}, folder / file)
    weight_map = {name: file for file, half in zip(files, halves, strict=True) for name in half}
    edit_json(folder / 'model.safetensors.index.json', weight_map=weight_map)
    return weight_map


def assert_same(checkpoint: Checkpoint, tensors: dict[str, np.ndarray]) -> None:
    for name, key in HF_NAMES.items():
        if key not in tensors:
            continue
        rows = checkpoint.rows(name)
        assert rows.dtype == np.float32 and rows.flags.c_contiguous
        np.testing.assert_array_equal(rows, tensors[key].astype(np.float32), err_msg=name)
        assert checkpoint.shape(name) == tensors[key].shape


def refused(folder: Path) -> str:
    with pytest.raises(CheckpointError) as error:
        open_checkpoint(folder)
    assert str(folder) in str(error.value)
    return str(error.value)


def test_specification(checkpoint_folder: Path) -> None:
    spec = open_checkpoint(checkpoint_folder).spec
    assert spec == ModelSpec(
        name='checkpoint', model_type='llama', hidden_size=64, layers=3, max_context=4096,
        attention=AttentionSpec(4, 2, 16), feed_forward=FeedForwardSpec(256, 'silu'),
        norm=NormSpec('rms', 1e-5), positions=PositionSpec('rotary', 10000.0),
        embedding=EmbeddingSpec(258, tied=False), end_tokens=(257,))
    assert not spec.feed_forward.sparse_by_nature


@pytest.mark.parametrize('dtype', [np.float32, np.float16, ml_dtypes.bfloat16])
def test_every_tensor_in_every_precision(checkpoint_folder: Path, dtype: type) -> None:
    edit_tensors(checkpoint_folder,
                 lambda t: t.update({name: tensor.astype(dtype) for name, tensor in t.items()}))
    assert_same(open_checkpoint(checkpoint_folder),
                load_file(checkpoint_folder / 'model.safetensors'))


def test_shards(checkpoint_folder: Path) -> None:
    whole = load_file(checkpoint_folder / 'model.safetensors')
    files = set(shard(checkpoint_folder).values())
    checkpoint = open_checkpoint(checkpoint_folder)
    assert_same(checkpoint, whole)
    assert {path.name for path in checkpoint.files} == {'config.json', 'tokenizer.json', *files}


def test_rows_are_those_of_a_slice(checkpoint_folder: Path) -> None:
    tensor = load_file(checkpoint_folder / 'model.safetensors')['lm_head.weight']
    checkpoint = open_checkpoint(checkpoint_folder)
    for bounds in ((0, 10), (250, None), (256, 999)):
        np.testing.assert_array_equal(checkpoint.rows('head', *bounds), tensor[slice(*bounds)])


def test_tied_head(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / 'tied', tie_word_embeddings=True)
    checkpoint = open_checkpoint(folder)
    assert checkpoint.spec.embedding.tied
    assert 'head' not in checkpoint.tensors


@pytest.mark.parametrize('first', [b'\x80', b'<', b'\x00', b'{'])
def test_any_length_of_the_header(checkpoint_folder: Path, first: bytes) -> None:
    """A file of tensors begins with it: its first byte may look like another kind of file."""
    path = checkpoint_folder / 'model.safetensors'
    content = path.read_bytes()
    length = int.from_bytes(content[:8], 'little')
    longer = length + (first[0] - length) % 256
    header = content[8:8 + length] + b' ' * (longer - length)
    path.write_bytes(longer.to_bytes(8, 'little') + header + content[8 + length:])
    assert path.read_bytes()[:1] == first
    open_checkpoint(checkpoint_folder)


@pytest.mark.parametrize(('key', 'scaling', 'theta'), [
    ('rope_scaling', {'type': 'linear', 'factor': 2.5}, 10000.0),
    ('rope_scaling', LLAMA3, 500000.0),
    ('rope_parameters', {**LLAMA3, 'factor': 32.0, 'original_max_position_embeddings': 8192},
     500000.0),
    ('rope_scaling', None, 75000.0),
])
def test_rotary_angles_are_those_of_transformers(checkpoint_folder: Path, key: str,
                                                 scaling: dict[str, object] | None,
                                                 theta: float) -> None:
    kind = (scaling or {}).get('rope_type') or (scaling or {}).get('type')
    reference = LlamaConfig(
        **{name: CONFIG[name] for name in ('hidden_size', 'num_attention_heads', 'head_dim')},
        rope_parameters={**(scaling or {}), 'rope_type': kind or 'default', 'rope_theta': theta})
    if kind:
        frequencies, factor = ROPE_INIT_FUNCTIONS[kind](reference, 'cpu')
        assert factor == 1.0
        frequencies = frequencies.double().numpy()
    else:
        frequencies = theta ** -(np.arange(0, 16, 2) / 16)
    in_parameters = {'rope_theta': theta} if key == 'rope_parameters' else {}
    edit_json(checkpoint_folder / 'config.json', rope_theta=theta,
              **{key: {**scaling, **in_parameters} if scaling else None})
    cos, sin = rotary_tables(open_checkpoint(checkpoint_folder).spec, 300, np.float64)
    angles = np.arange(300)[:, None] * frequencies
    np.testing.assert_allclose(cos, np.cos(angles), atol=1e-4)
    np.testing.assert_allclose(sin, np.sin(angles), atol=1e-4)


@pytest.mark.parametrize(('changes', 'words'), [
    ({'model_type': 'mamba'}, ("'mamba'", 'llama')),
    ({'model_type': ['llama']}, ('model type',)),
    ({'attention_bias': True}, ('q_proj.bias is missing',)),
    ({'layer_types': ['chunked_attention'] * 3}, ('layer_types', 'chunked_attention')),
    ({'mlp_bias': True}, ('mlp_bias',)),
    ({'hidden_act': 'elu'}, ('activation', "'elu'", 'silu')),
    ({'hidden_size': '64'}, ('hidden_size', "'64'")),
    ({'num_hidden_layers': 0}, ('layers', '0')),
    ({'num_attention_heads': 0, 'head_dim': None}, ('config.json',)),
    ({'head_dim': 24}, ('head_dim is 24', 'a multiple of 16')),
    ({'num_key_value_heads': 3}, ('kv_heads', '3')),
    ({'rms_norm_eps': float('nan')}, ('eps', 'nan')),
    ({'rope_theta': -1.0}, ('theta', '-1')),
    ({'rope_theta': 10 ** 400}, ('config.json',)),
    ({'rope_scaling': {'rope_type': 'linear', 'factor': 0}}, ('factors',)),
    ({'rope_scaling': {**LLAMA3, 'factor': 0.0}}, ('config.json',)),
    ({'rope_scaling': {'rope_type': 'llama3', 'factor': 8.0}}, ('low_freq_factor',)),
    ({'rope_scaling': ['linear']}, ('config.json',)),
    ({'rope_scaling': {'type': 'linear', 'factor': 2.0}, 'rope_parameters': {
        'rope_type': 'linear', 'factor': 4.0}}, ('rope_scaling', 'rope_parameters', 'the same')),
    ({'rope_scaling': {'rope_type': 'ntk', 'factor': 2.0}}, ("'ntk' is not supported",)),
    ({'rope_scaling': {'rope_type': 'longrope'}}, ('long_factor',)),
    ({'partial_rotary_factor': 0.5}, ('partial_rotary_factor is 0.5', 'must be 1')),
    ({'eos_token_id': 258}, ('258', 'vocabulary')),
    ({'eos_token_id': ['x']}, ("'x'",)),
    ({'vocab_size': 259}, ('embedding', '(258, 64)', '(259, 64)')),
])
def test_wrong_configuration(checkpoint_folder: Path, changes: dict[str, object],
                             words: tuple[str, ...]) -> None:
    edit_json(checkpoint_folder / 'config.json', **changes)
    message = refused(checkpoint_folder)
    assert all(word in message for word in words), message


def test_missing_configuration_field(checkpoint_folder: Path) -> None:
    config = {name: value for name, value in CONFIG.items() if name != 'intermediate_size'}
    (checkpoint_folder / 'config.json').write_text(json.dumps(config))
    message = refused(checkpoint_folder)
    assert 'config.json' in message and 'intermediate_size' in message


@pytest.mark.parametrize('content', [b'{"model_type": "lla', b'[1, 2]', b'\xff\xfe\x00', b'',
                                     b'[' * 100_000],
                         ids=['cut', 'list', 'bytes', 'empty', 'deep'])
def test_broken_json(checkpoint_folder: Path, content: bytes) -> None:
    for file in ('tokenizer.json', 'config.json'):
        (checkpoint_folder / file).write_bytes(content)
        assert file in refused(checkpoint_folder)


@pytest.mark.parametrize('file', ['config.json', 'tokenizer.json', 'model.safetensors'])
def test_missing_file(checkpoint_folder: Path, file: str) -> None:
    (checkpoint_folder / file).unlink()
    assert file in refused(checkpoint_folder)


def test_missing_shard(checkpoint_folder: Path) -> None:
    file = sorted(set(shard(checkpoint_folder).values()))[1]
    (checkpoint_folder / file).unlink()
    assert file in refused(checkpoint_folder)


@pytest.mark.parametrize('index', [{}, {'weight_map': ['a']}, {'weight_map': {'a': 5}}])
def test_broken_index(checkpoint_folder: Path, index: dict[str, object]) -> None:
    (checkpoint_folder / 'model.safetensors').unlink()
    (checkpoint_folder / 'model.safetensors.index.json').write_text(json.dumps(index))
    message = refused(checkpoint_folder)
    assert 'model.safetensors.index.json' in message and 'weight_map' in message


def test_index_that_names_a_tensor_its_shard_lacks(checkpoint_folder: Path) -> None:
    weight_map = shard(checkpoint_folder)
    name, files = 'model.norm.weight', sorted(set(weight_map.values()))
    weight_map[name] = next(file for file in files if file != weight_map[name])
    edit_json(checkpoint_folder / 'model.safetensors.index.json', weight_map=weight_map)
    assert name in refused(checkpoint_folder)


def test_missing_tensor(checkpoint_folder: Path) -> None:
    name = 'model.layers.1.mlp.up_proj.weight'
    edit_tensors(checkpoint_folder, lambda t: t.pop(name))
    assert name in refused(checkpoint_folder)


def test_wrong_shape(checkpoint_folder: Path) -> None:
    name = 'model.layers.1.mlp.up_proj.weight'
    edit_tensors(checkpoint_folder, lambda t: t.update({name: np.zeros((256, 63), np.float32)}))
    message = refused(checkpoint_folder)
    assert 'layers.1.up' in message and '(256, 63)' in message and '(256, 64)' in message


@pytest.mark.parametrize('name', [
    'model.layers.0.self_attn.q_proj.bias', 'model.layers.0.self_attn.q_norm.weight',
    'model.layers.0.mlp.up_proj.weight_scale', 'model.layers.3.mlp.up_proj.weight',
    'model.layers.0.self_attn.q_proj.lora_A.weight', 'score.weight'])
def test_tensor_that_nobody_reads(checkpoint_folder: Path, name: str) -> None:
    edit_tensors(checkpoint_folder, lambda t: t.update({name: np.zeros(64, np.float32)}))
    assert name in refused(checkpoint_folder)


def test_tensors_that_follow_from_others(checkpoint_folder: Path) -> None:
    edit_tensors(checkpoint_folder, lambda t: t.update({
        'model.layers.0.self_attn.rotary_emb.inv_freq': np.zeros(8, np.float32)}))
    checkpoint = open_checkpoint(checkpoint_folder)
    assert not any('inv_freq' in name for name in checkpoint.tensors)


@pytest.mark.parametrize('tied', [{'tie_word_embeddings': False}, {'tie_word_embeddings': None}])
def test_missing_head(tmp_path: Path, tied: dict[str, object]) -> None:
    """None: the setting is missing; a llama is not tied then."""
    folder = write_checkpoint(tmp_path / 'tied', tie_word_embeddings=True)
    config = json.loads((folder / 'config.json').read_text()) | tied
    (folder / 'config.json').write_text(json.dumps(
        {name: value for name, value in config.items() if value is not None}))
    assert 'lm_head.weight' in refused(folder)


def test_integer_weights(checkpoint_folder: Path) -> None:
    name = 'model.layers.0.mlp.up_proj.weight'
    edit_tensors(checkpoint_folder, lambda t: t.update({name: np.zeros((256, 64), np.int8)}))
    assert 'layers.0.mlp.up_proj.weight is I8' in refused(checkpoint_folder)


@pytest.mark.parametrize('keep', [0, 7, 100, 5000, -1])
def test_truncated_safetensors(checkpoint_folder: Path, keep: int) -> None:
    file = checkpoint_folder / 'model.safetensors'
    file.write_bytes(file.read_bytes()[:keep])
    assert 'model.safetensors' in refused(checkpoint_folder)


def test_nothing_there(tmp_path: Path) -> None:
    assert 'does not exist' in refused(tmp_path / 'nowhere')
