"""MiniCPM against transformers' llama with the three scales put between its modules by hooks."""

import json
from pathlib import Path
import re

from gguf_checkpoint import write_gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from test_relu_families import FatRelu
from tiny_checkpoint import write_checkpoint
import torch
from transformers import LlamaForCausalLM, PreTrainedModel

from flash_llm_ros.checkpoint.errors import CheckpointError
from flash_llm_ros.checkpoint.huggingface_writer import write_huggingface
from flash_llm_ros.checkpoint.open import open_checkpoint
from flash_llm_ros.convert.conversion import ConversionOptions, convert
from flash_llm_ros.engine import Engine, EngineConfig, GenerationRequest

EMBEDDING, DEPTH, BASE = 3.0, 2.4, 16           # each far from 1, none drowns the others
RESIDUAL, WIDTH = DEPTH / 3 ** 0.5, 64 / BASE   # three layers, 64 wide
GGUF_SCALES = {'minicpm.embedding_scale': EMBEDDING, 'minicpm.residual_scale': RESIDUAL,
               'minicpm.logit_scale': WIDTH}
PROMPTS = ('Where is the charging station?', 'Turn left, then stop. ' * 5)
VARIANTS = {
    'silu': {}, 'silu-tied': {'tie_word_embeddings': True},
    'relu-tied': {'hidden_act': 'relu', 'tie_word_embeddings': True},
    'fatrelu': {'hidden_act': 'fatrelu', 'hidden_act_param': 0.1},
}


def write_minicpm(folder: Path, **changes: object) -> Path:
    return write_checkpoint(folder, seed=6, **{
        'model_type': 'minicpm', 'architectures': ['MiniCPMForCausalLM'], 'scale_emb': EMBEDDING,
        'scale_depth': DEPTH, 'dim_model_base': BASE, **changes})


def reference_of(folder: Path) -> PreTrainedModel:
    """Llama with the unfolded weights; transformers knows neither the family nor fatrelu."""
    config = json.loads((folder / 'config.json').read_text())
    copy = folder.with_name(f'{folder.name}-llama')
    copy.mkdir(exist_ok=True)
    known = config['hidden_act'].replace('fatrelu', 'silu')
    (copy / 'config.json').write_text(json.dumps({
        **config, 'model_type': 'llama', 'architectures': ['LlamaForCausalLM'],
        'hidden_act': known}))
    save_file(load_file(folder / 'model.safetensors'), copy / 'model.safetensors',
              metadata={'format': 'pt'})
    model = LlamaForCausalLM.from_pretrained(copy, dtype=torch.float32).eval()
    model.model.embed_tokens.register_forward_hook(lambda *call: call[2] * EMBEDDING)
    model.model.norm.register_forward_hook(lambda *call: call[2] / WIDTH)
    for layer in model.model.layers:
        layer.self_attn.register_forward_hook(lambda *call: (call[2][0] * RESIDUAL, *call[2][1:]))
        layer.mlp.register_forward_hook(lambda *call: call[2] * RESIDUAL)
        if config['hidden_act'] == 'fatrelu':
            layer.mlp.act_fn = FatRelu()
    return model


@pytest.fixture(scope='module', params=VARIANTS)
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param) / 'checkpoint'
    return write_minicpm(folder, **VARIANTS[request.param])


@pytest.mark.parametrize('neurons', ['fp16', 'int8'])
def test_greedy_tokens_and_logits(checkpoint: Path, neurons: str, tmp_path: Path) -> None:
    reference = reference_of(checkpoint)
    convert(checkpoint, tmp_path / 'store', ConversionOptions(neurons=neurons, calibrate=False),
            lambda what, done, total: None)
    engine = Engine.open(EngineConfig(tmp_path / 'store', 40_000_000, lock_memory=False))
    try:
        for prompt in PROMPTS:
            generation = engine.start(GenerationRequest(prompt, raw=True, max_tokens=30))
            for _ in generation:
                pass
            given = torch.tensor([generation.prompt_tokens])
            expected = reference.generate(given, max_new_tokens=30, do_sample=False,
                                          pad_token_id=257, attention_mask=torch.ones_like(given))
            assert neurons != 'fp16' or generation.tokens == expected[0, given.shape[1]:].tolist()
        tokens = np.array(generation.prompt_tokens[:60], np.int64)
        logits = np.empty((len(tokens), engine.model.spec.embedding.vocab_size), np.float32)
        engine.model.forward(tokens, 0, True, logits)
    finally:
        engine.close()
    with torch.no_grad():
        expected = reference(torch.from_numpy(tokens[None])).logits[0].numpy()
    wrong = np.abs(logits - expected) / expected.std()
    assert np.quantile(wrong, 0.99) < (0.01 if neurons == 'fp16' else 0.2)
    assert np.polyfit(expected.ravel(), logits.ravel(), 1)[0] == pytest.approx(1, abs=0.01)


def test_gguf_is_the_same_model(checkpoint: Path, tmp_path: Path) -> None:
    """But for the activation function, of which GGUF files of MiniCPM say nothing."""
    write_gguf(checkpoint, tmp_path / 'model.gguf', metadata=GGUF_SCALES)
    folder, file = open_checkpoint(checkpoint), open_checkpoint(tmp_path / 'model.gguf')
    assert file.spec.embedding.tied == folder.spec.embedding.tied
    assert file.spec.feed_forward.activation == 'silu'
    for name in folder.tensors:
        np.testing.assert_allclose(file.rows(name), folder.rows(name), rtol=1e-6)
        np.testing.assert_array_equal(file.rows(name, 3, 7), file.rows(name)[3:7])


def test_the_first_gguf_files_name_no_scales(tmp_path: Path) -> None:
    folder = write_minicpm(tmp_path / 'checkpoint', scale_emb=12, scale_depth=1.4,
                           dim_model_base=256)
    write_gguf(folder, tmp_path / 'model.gguf')
    folder, file = open_checkpoint(folder), open_checkpoint(tmp_path / 'model.gguf')
    for name in ('embedding', 'layers.2.o', 'layers.0.down', 'final_norm', 'head'):
        np.testing.assert_allclose(file.rows(name), folder.rows(name), rtol=1e-6)


def test_a_copy_with_the_scales_in_its_weights_is_llama(checkpoint: Path, tmp_path: Path) -> None:
    source = open_checkpoint(checkpoint)
    write_huggingface(source, tmp_path / 'copy', {'hidden_act': 'silu'}, {})
    copy = LlamaForCausalLM.from_pretrained(tmp_path / 'copy', dtype=torch.float32).eval()
    reference = reference_of(checkpoint)
    for layer in reference.model.layers:
        layer.mlp.act_fn = torch.nn.SiLU()
    tokens = torch.arange(20, 80)[None]
    with torch.no_grad():
        expected = reference(tokens).logits
        assert (copy(tokens).logits - expected).abs().max() < 0.02 * expected.std()


def test_a_scaled_weight_outside_of_fp16_is_refused(tmp_path: Path) -> None:
    folder = write_minicpm(tmp_path / 'checkpoint')
    tensors = load_file(folder / 'model.safetensors')
    tensors['model.embed_tokens.weight'][7, 7] = 30_000         # three times this is too much
    save_file(tensors, folder / 'model.safetensors', metadata={'format': 'pt'})
    with pytest.raises(ValueError, match='magnitude 90000 is outside the fp16 range'):
        convert(folder, tmp_path / 'store', ConversionOptions(neurons='fp16', calibrate=False),
                lambda what, done, total: None)
    with pytest.raises(CheckpointError, match='tensor embedding has a value of magnitude 90000'):
        write_huggingface(open_checkpoint(folder), tmp_path / 'copy', {}, {})
    convert(folder, tmp_path / 'store', ConversionOptions(calibrate=False),
            lambda what, done, total: None)


@pytest.mark.parametrize(('changes', 'said'), [
    ({'scale_emb': None}, 'scale_emb is None; it must be a positive number'),
    ({'scale_depth': 'deep'}, "scale_depth is 'deep'"),
    ({'dim_model_base': 0}, 'dim_model_base is 0'),
    ({'scale_emb': float('inf')}, 'scale_emb is inf'),
    ({'num_experts': 8}, 'mixtures of experts'),
    ({'attention_bias': True}, 'attention_bias is true'),
    ({'hidden_act': 'shiftrelu'}, "activation is 'shiftrelu'"),
    ({'rope_scaling': {'rope_type': 'longrope', 'factor': 1.0}},
     "rope scaling 'longrope' is not supported"),
])
def test_what_is_refused(tmp_path: Path, changes: dict, said: str) -> None:
    folder = write_minicpm(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=re.escape(said)):
        open_checkpoint(folder)


def test_a_folder_without_a_scale_is_refused(tmp_path: Path) -> None:
    folder = write_minicpm(tmp_path)
    config = json.loads((folder / 'config.json').read_text())
    del config['dim_model_base']
    (folder / 'config.json').write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="lacks 'dim_model_base'"):
        open_checkpoint(folder)


@pytest.mark.parametrize(('metadata', 'said'), [
    ({'minicpm.logit_scale': 0.0}, 'minicpm.logit_scale is 0.0'),
    ({'minicpm.rope.scaling.type': 'longrope'}, "rope scaling 'longrope'"),
    ({'minicpm.expert_count': 8}, 'mixtures of experts'),
])
def test_gguf_files_that_are_refused(tmp_path: Path, metadata: dict, said: str) -> None:
    write_gguf(write_minicpm(tmp_path / 'checkpoint'), tmp_path / 'model.gguf', metadata=metadata)
    with pytest.raises(CheckpointError, match=re.escape(said)):
        open_checkpoint(tmp_path / 'model.gguf')
