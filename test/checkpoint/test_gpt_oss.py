"""What only gpt-oss has: MXFP4, in both kinds of files, and YaRN whose ramp is not truncated."""

from itertools import product
from pathlib import Path
import re

from expert_checkpoints import EXPERT_FAMILIES, in_mxfp4, write_gpt_oss
import gguf
from gguf import GGMLQuantizationType as Type
from gguf_checkpoint import write_gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_checkpoint import converted
import torch
from transformers import GptOssConfig
from transformers.integrations.mxfp4 import convert_moe_packed_tensors
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from flash_llm_ros.checkpoint.errors import CheckpointError
from flash_llm_ros.checkpoint.families import family
from flash_llm_ros.checkpoint.mxfp4 import mxfp4_values
from flash_llm_ros.checkpoint.open import open_checkpoint
from flash_llm_ros.store.neuron_reader import NeuronReader


def test_values_of_mxfp4_are_transformers() -> None:
    rng = np.random.default_rng(1)
    blocks = rng.integers(0, 256, (2, 6, 3, 16)).astype(np.uint8)
    scales = rng.integers(100, 150, (2, 6, 3)).astype(np.uint8)
    wanted = convert_moe_packed_tensors(torch.from_numpy(blocks), torch.from_numpy(scales),
                                        dtype=torch.float32)
    found = mxfp4_values(blocks, scales)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.swapaxes(1, 2), wanted.numpy())     # theirs are turned


def test_mxfp4_in_gguf(tmp_path: Path) -> None:
    folder = open_checkpoint(write_gpt_oss(tmp_path / 'checkpoint'))
    packed = {f'blk.{layer}.ffn_{part}_exps.weight': (gguf.quantize(folder.rows(
        f'layers.{layer}.expert_{part}'), Type.MXFP4), Type.MXFP4)
        for layer in range(3) for part in ('gate', 'up', 'down')}
    write_gguf(folder.path, tmp_path / 'model.gguf', extra=packed)
    file = open_checkpoint(tmp_path / 'model.gguf')
    for name in folder.tensors:
        np.testing.assert_array_equal(file.rows(name), folder.rows(name))


def test_experts_of_an_int4_store_are_what_the_checkpoint_has(tmp_path: Path) -> None:
    """In MXFP4; those of another checkpoint, which that would round, are int4."""
    checkpoint = open_checkpoint(write_gpt_oss(tmp_path / 'checkpoint'))
    store = converted(checkpoint.path, tmp_path / 'store', neurons='int4')
    geometry = store.manifest.geometry
    assert geometry.formats['expert_gate_up'] == geometry.formats['expert_down'] == {'mxfp4': 3}
    assert 'mxfp4' not in geometry.formats['head']
    with NeuronReader(store) as reader:
        for (section, copy), name in product(geometry.runs(), ('gate', 'up', 'down')):
            if name not in section.name or 'expert' not in section.name:
                continue
            _, found = next(reader.parts(section, copy))
            row = 1 if name == 'up' else 0
            for part, values in (('', found[:, row, :-1]), ('_bias', found[:, row, -1])):
                wanted = checkpoint.rows(f'layers.{section.layer}.expert_{name}{part}', copy,
                                         copy + 1)[0]
                np.testing.assert_array_equal(values, wanted)
    other = converted(EXPERT_FAMILIES['mixtral'](tmp_path / 'other'), tmp_path / 'other.store',
                      neurons='int4')
    assert other.manifest.geometry.formats['expert_down'] == {'int4': 3}


@pytest.mark.parametrize(('change', 'said'), [
    (lambda scales: scales[:, :, :1], 'its scales have (8, 192, 1)'),
    (lambda scales: scales.astype(np.float32), 'is F32; it must be one of U8')])
def test_wrong_scales(change, said: str, tmp_path: Path) -> None:
    folder = in_mxfp4(write_gpt_oss(tmp_path / 'checkpoint'), tmp_path / 'packed')
    tensors = load_file(folder / 'model.safetensors')
    name = 'model.layers.1.mlp.experts.gate_up_proj_scales'
    tensors[name] = np.ascontiguousarray(change(tensors[name]))
    save_file(tensors, folder / 'model.safetensors', metadata={'format': 'pt'})
    with pytest.raises(CheckpointError, match=re.escape(said)):
        open_checkpoint(folder)


def test_positions_of_the_real_models() -> None:
    """gpt-oss-20b's settings, as its config.json has them."""
    rope = {'rope_type': 'yarn', 'factor': 32.0, 'beta_fast': 32.0, 'beta_slow': 1.0,
            'truncate': False, 'original_max_position_embeddings': 4096}
    config = {'model_type': 'gpt_oss', 'hidden_size': 2880, 'num_attention_heads': 64,
              'head_dim': 64, 'rope_theta': 150000, 'max_position_embeddings': 131072,
              'rope_scaling': rope}
    found = family('gpt_oss').positions(config)
    wanted, scale = ROPE_INIT_FUNCTIONS['yarn'](GptOssConfig(
        rope_parameters={**rope, 'rope_theta': 150000}), torch.device('cpu'))
    frequencies = 150000 ** (-np.arange(0, 64, 2) / 64) / np.array(found.factors)
    np.testing.assert_allclose(frequencies, wanted.numpy(), rtol=1e-5)
    assert found.scale == pytest.approx(scale)
