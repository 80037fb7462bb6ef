"""What is recorded of sections is what their matrices meet in transformers."""

from collections.abc import Callable
from pathlib import Path

from family_checkpoints import VARIANTS, reference_of
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_checkpoint import converted, write_checkpoint
import torch

from flash_llm_ros.convert.recording import record
from flash_llm_ros.engine import Engine, EngineConfig

TEXT = 'The robot turns left at the door, waits, and asks the next person for the way. ' * 9
# Of a layer, its names in transformers.
MATRICES = {'qkv': ('self_attn.q_proj',), 'o': ('self_attn.o_proj', 'self_attn.out_proj'),
            'conv_in': ('conv.in_proj',), 'conv_out': ('conv.out_proj',),
            'gate_up': ('mlp.gate_proj', 'feed_forward.w1'),
            'down': ('mlp.down_proj', 'feed_forward.w2')}


@pytest.mark.parametrize('family', ['llama', 'lfm2', 'gemma2', 'olmo2'])
def test_in_every_section(tmp_path: Path, family: str) -> None:
    """Convolutions, norms behind blocks, and none before attention, too; in two pieces of 512."""
    write: Callable[[Path], Path] = write_checkpoint if family == 'llama' else VARIANTS[family]
    checkpoint = write(tmp_path / 'checkpoint')
    tensors = load_file(checkpoint / 'model.safetensors')
    save_file({name: rows.astype(np.float16).astype(np.float32) for name, rows in tensors.items()},
              checkpoint / 'model.safetensors', metadata={'format': 'pt'})
    store = converted(checkpoint, tmp_path / 'store', neurons='fp16')
    sections = [(section.name, section.layer) for section in store.manifest.geometry.sections
                if section.name != 'embedding' or store.manifest.model.embedding.tied]
    engine = Engine.open(EngineConfig(store.path, 60_000_000, mode='exact', context_length=512,
                                      kv_cache='int16', lock_memory=False))
    tokens = np.array(engine.tokenize(TEXT)[:700], np.int64)
    recording = record(engine, tokens, sections, tmp_path / 'recording', lambda done, total: None)
    assert engine.model.observer is None
    engine.close()

    model, seen = reference_of(checkpoint), {}
    found = dict(model.named_modules())
    for name, layer in sections:
        matrix = found['lm_head'] if layer < 0 else next(
            found[f'model.layers.{layer}.{each}'] for each in MATRICES[name]
            if f'model.layers.{layer}.{each}' in found)
        met = seen[name, layer] = []
        matrix.register_forward_hook(lambda module, inputs, output, met=met:
                                     met.append(inputs[0][0].numpy()))
    with torch.no_grad():
        for piece in torch.from_numpy(tokens[None]).split(512, dim=1):
            model(piece)
    for section, met in seen.items():
        expected = np.concatenate(met)
        inputs = recording.read(*section)
        assert inputs.shape == expected.shape, section
        if section[1] < 0:      # a factor may be folded into the head
            inputs *= (inputs * expected).sum() / np.square(inputs).sum()
        np.testing.assert_allclose(inputs, expected, atol=5e-3 * np.abs(expected).max(),
                                   err_msg=str(section))
