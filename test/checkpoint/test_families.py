"""Every architecture family and variant against transformers."""

from dataclasses import replace
from importlib.util import find_spec
import json
from pathlib import Path
import re

from family_checkpoints import (
    GGUF_METADATA,
    SETTINGS,
    THRESHOLD,
    VARIANTS,
    WRITTEN,
    FamilyModel,
    reference_of,
    write_fatrelu,
    write_minicpm,
    write_opt,
)
from gguf_checkpoint import write_gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_checkpoint import converted, write_checkpoint
import torch
from transformers import AutoModel, AutoModelForCausalLM

from bench.model.families import NEW_TOKENS, llama_cpp_answer, rows_of, step_logits
from bench.quality.reference_model import reference_choices, reference_logits
from flash_llm_ros.checkpoint.errors import CheckpointError
from flash_llm_ros.checkpoint.open import open_checkpoint
from flash_llm_ros.engine import Engine, EngineConfig, GenerationRequest

PROMPTS = ('Where is the charging station?', 'x', 'Turn left, then stop. ' * 5)


@pytest.fixture(scope='module', params=[*WRITTEN, 'qwen3', 'gemma2', 'lfm2', 'olmo2',
                                        'nemotron-biases', 'stablelm-parallel'])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FamilyModel:
    folder = VARIANTS[request.param](tmp_path_factory.mktemp(request.param) / 'checkpoint')
    return FamilyModel(request.param, folder, reference_of(folder))


@pytest.mark.parametrize('name', SETTINGS)
def test_logits_and_greedy_tokens_of_folders_and_gguf(name: str, tmp_path: Path) -> None:
    """As transformers has them, and llama.cpp, where it is installed."""
    torch.set_num_threads(1)
    for *_, found in rows_of(name, tmp_path, llama_cpp=find_spec('xllamacpp') is not None):
        assert found.right, found


def open_engine(checkpoint: Path, store: Path, neurons: str) -> Engine:
    converted(checkpoint, store, neurons=neurons, calibrate=False)
    return Engine.open(EngineConfig(store, 40_000_000, lock_memory=False, context_length=256,
                                    kv_cache='int16'))


def test_greedy_tokens_and_logits(model: FamilyModel, tmp_path: Path) -> None:
    engine = open_engine(model.checkpoint, tmp_path / 'store', 'fp16')
    try:
        for prompt in PROMPTS:
            generation = engine.start(GenerationRequest(prompt, raw=True, max_tokens=30))
            for _ in generation:
                pass
            answer = generation.tokens
            assert len(answer) == 30 or answer[-1] == 257
            assert answer == reference_choices(model.reference, generation.prompt_tokens, answer)
        tokens = np.array(generation.prompt_tokens[:60], np.int64)
        embeddings = np.random.default_rng(0).standard_normal((40, 64), np.float32)
        logits, of_embeddings = (np.empty((n, 258), np.float32) for n in (60, 40))
        engine.model.forward(tokens, 0, True, logits)
        scale = getattr(model.reference.config, 'embedding_multiplier', 1)  # of these, too
        engine.model.forward_embeddings(scale * embeddings, 0, True, of_embeddings)
    finally:
        engine.close()
    for found, inputs in ((logits, {'input_ids': torch.from_numpy(tokens[None])}),
                          (of_embeddings, {'inputs_embeds': torch.from_numpy(embeddings[None])})):
        with torch.no_grad():
            expected = model.reference(**inputs).logits[0].numpy()
        wrong = np.abs(found - expected) / expected.std()
        assert np.quantile(wrong, 0.98) < 0.01
        assert wrong.max() < 0.1           # fp16 takes some gates over a threshold that is a step


def test_a_quantised_store_stays_close(model: FamilyModel, tmp_path: Path) -> None:
    engine = open_engine(model.checkpoint, tmp_path / 'store', 'int8')
    tokens, logits = np.arange(20, 80), np.empty((60, 258), np.float32)
    engine.model.forward(tokens, 0, True, logits)
    engine.close()
    with torch.no_grad():
        expected = model.reference(torch.from_numpy(tokens[None])).logits[0].numpy()
    assert np.corrcoef(logits.ravel(), expected.ravel())[0, 1] > 0.998
    assert np.polyfit(expected.ravel(), logits.ravel(), 1)[0] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize('variant', ['llama', 'qwen2', 'minicpm', 'minicpm-tied'])
def test_gguf_is_the_same_model(variant: str, tmp_path: Path) -> None:
    checkpoint = VARIANTS[variant](tmp_path / 'checkpoint')
    write_gguf(checkpoint, tmp_path / 'model.gguf',
               metadata=GGUF_METADATA.get(variant, {}))
    folder, file = open_checkpoint(checkpoint), open_checkpoint(tmp_path / 'model.gguf')
    assert file.spec.norm.eps == pytest.approx(folder.spec.norm.eps)
    assert replace(file.spec, name='checkpoint', norm=folder.spec.norm) == folder.spec
    for name in folder.tensors:
        np.testing.assert_allclose(file.rows(name), folder.rows(name), rtol=1e-6)


def test_short_contexts_have_factors_of_their_own(tmp_path: Path) -> None:
    """longrope: a context of 32 tokens is as long as what the model was first trained with."""
    checkpoint = VARIANTS['phi3-longrope'](tmp_path / 'checkpoint')
    store = converted(checkpoint, tmp_path / 'store', neurons='fp16').path
    engine = Engine.open(EngineConfig(store, 40_000_000, lock_memory=False, context_length=32,
                                      kv_cache='int16'))
    tokens = list(range(40, 70))
    found = step_logits(engine, tokens)
    engine.close()
    reference = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    expected = reference_logits(reference, tokens)
    assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize('prefixes', [('language_model.model.', 'language_model.lm_head.'),
                                      ('model.language_model.', 'lm_head.')])
def test_the_text_model_within_one_of_pictures(prefixes: tuple[str, str], tmp_path: Path) -> None:
    folder = VARIANTS['ministral3'](tmp_path / 'checkpoint')
    alone = open_checkpoint(folder)
    rows = {name: alone.rows(name) for name in ('embedding', 'layers.1.q', 'final_norm', 'head')}
    inner = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({
        'model_type': 'mistral3', 'text_config': inner, 'vision_config': {'hidden_size': 32}}))
    tensors = {'vision_tower.ln_pre.weight': np.ones(32, np.float32)}
    for name, tensor in load_file(folder / 'model.safetensors').items():
        layers, head = prefixes
        tensors[re.sub('^lm_head\\.', head, re.sub('^model\\.', layers, name))] = tensor
    save_file(tensors, folder / 'model.safetensors', metadata={'format': 'pt'})
    within = open_checkpoint(folder)
    assert within.spec == alone.spec
    for name, expected in rows.items():
        np.testing.assert_array_equal(within.rows(name), expected)


@pytest.mark.parametrize('name', ['llama', 'opt', 'gemma3', 'qwen3', 'lfm2'])
def test_folders_of_a_model_without_its_head(name: str, tmp_path: Path) -> None:
    """As `AutoModel` saves them: names of tensors lack their beginning."""
    folder = (write_checkpoint(tmp_path, tie_word_embeddings=True) if name == 'llama'
              else VARIANTS[name](tmp_path))
    whole = open_checkpoint(folder)
    rows = {tensor: whole.rows(tensor) for tensor in whole.tensors}
    AutoModel.from_pretrained(folder).save_pretrained(folder)
    assert not any(tensor.startswith('model.') for tensor in load_file(
        folder / 'model.safetensors'))
    again = open_checkpoint(folder)
    assert again.spec == whole.spec and again.tensors.keys() == rows.keys()
    for tensor, expected in rows.items():
        np.testing.assert_array_equal(again.rows(tensor), expected)


def test_a_head_in_place_of_a_tied_embedding(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, tie_word_embeddings=True)
    tensors = load_file(folder / 'model.safetensors')
    tensors['lm_head.weight'] = tensors.pop('model.embed_tokens.weight')
    save_file(tensors, folder / 'model.safetensors', metadata={'format': 'pt'})
    checkpoint = open_checkpoint(folder)
    reference = AutoModelForCausalLM.from_pretrained(folder)
    assert checkpoint.spec.embedding.tied and not checkpoint.doubts
    np.testing.assert_array_equal(checkpoint.rows('embedding'),
                                  reference.get_input_embeddings().weight.detach().numpy())


def test_a_tensor_under_two_names(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path)
    tensors = load_file(folder / 'model.safetensors')
    tensors['norm.weight'] = tensors['model.norm.weight'] * 2
    save_file(tensors, folder / 'model.safetensors', metadata={'format': 'pt'})
    with pytest.raises(CheckpointError, match=r'norm\.weight is there twice'):
        open_checkpoint(folder)


_YARN_FACTOR = {'scaling.type': 'yarn', 'scaling.factor': 4.0,
                'scaling.original_context_length': 64, 'scaling.attn_factor': 1.5}


@pytest.mark.skipif(find_spec('xllamacpp') is None, reason='llama.cpp is not installed')
@pytest.mark.parametrize(('name', 'metadata'), [
    ('llama', {f'llama.rope.{key}': value for key, value in _YARN_FACTOR.items()}),
    ('phi3-longrope', {'phi3.rope.scaling.type': None, 'phi3.rope.scaling.factor': None}),
    ('gemma3', {'gemma3.attention.sliding_window': None}),
    ('gemma3', {'gemma3.attention.sliding_window': 8,
                'gemma3.attention.sliding_window_pattern': 3}),
    ('stablelm', {'stablelm.rope.dimension_count': None}),
])
def test_metadata_as_llama_cpp_reads_it(name: str, metadata: dict, tmp_path: Path) -> None:
    file = tmp_path / 'model.gguf'
    write_gguf(VARIANTS[name](tmp_path / 'checkpoint'), file, metadata=metadata)
    engine = open_engine(file, tmp_path / 'store', 'fp16')
    generation = engine.start(GenerationRequest(PROMPTS[2], raw=True, max_tokens=NEW_TOKENS))
    for _ in generation:
        pass
    engine.close()
    assert generation.tokens == llama_cpp_answer(file, generation.prompt_tokens)


def head_of_transformers(folder: Path) -> np.ndarray:
    return AutoModelForCausalLM.from_pretrained(folder).lm_head.weight.detach().numpy()


@pytest.mark.parametrize('rows', [258, 9000])
def test_a_head_beside_a_tied_embedding(rows: int, tmp_path: Path) -> None:
    """It is the head where its numbers are others, as in transformers; a doubt says so."""
    folder = write_checkpoint(tmp_path, tie_word_embeddings=True, vocab_size=rows)
    tensors = load_file(folder / 'model.safetensors')
    head = tensors['lm_head.weight'] = tensors['model.embed_tokens.weight'].copy()
    for last, said in ((head[-1, -1], ''), (7, 'tie_word_embeddings is true')):
        head[-1, -1] = last
        save_file(tensors, folder / 'model.safetensors', metadata={'format': 'pt'})
        checkpoint = open_checkpoint(folder)
        assert checkpoint.spec.embedding.tied == (not said)
        assert said in ''.join(checkpoint.doubts) and bool(checkpoint.doubts) == bool(said)
        found = checkpoint.rows('head' if said else 'embedding')
        np.testing.assert_array_equal(found, head_of_transformers(folder))


def test_one_file_goes_before_the_index_of_others(tmp_path: Path) -> None:
    """As in transformers, where a folder has both."""
    folder, other = (write_checkpoint(tmp_path / str(seed), seed) for seed in (0, 1))
    AutoModelForCausalLM.from_pretrained(other).save_pretrained(folder, max_shard_size='100KB')
    assert (folder / 'model.safetensors.index.json').is_file()
    write_checkpoint(folder, seed=0)
    np.testing.assert_array_equal(open_checkpoint(folder).rows('head'),
                                  head_of_transformers(folder))


def test_the_first_minicpm_files_name_no_scales(tmp_path: Path) -> None:
    folder = write_minicpm(tmp_path / 'checkpoint', scale_emb=12, scale_depth=1.4,
                           dim_model_base=256)
    write_gguf(folder, tmp_path / 'model.gguf')
    folder, file = open_checkpoint(folder), open_checkpoint(tmp_path / 'model.gguf')
    for name in ('embedding', 'layers.2.o', 'layers.0.down', 'final_norm', 'head'):
        np.testing.assert_allclose(file.rows(name), folder.rows(name), rtol=1e-6)


def test_the_first_lfm2_files_have_other_names(tmp_path: Path) -> None:
    folder = VARIANTS['lfm2'](tmp_path / 'checkpoint')
    spec, config = open_checkpoint(folder).spec, json.loads((folder / 'config.json').read_text())
    kinds = config.pop('layer_types')
    (folder / 'config.json').write_text(json.dumps(config | {
        'full_attn_idxs': [layer for layer, kind in enumerate(kinds) if kind != 'conv'],
        'block_ff_dim': config.pop('intermediate_size'),
        'tie_embedding': config.pop('tie_word_embeddings')}))
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    assert theirs.config.layer_types == kinds
    assert theirs.model.layers[0].feed_forward.w1.out_features == spec.feed_forward.size
    assert open_checkpoint(folder).spec == spec


def test_a_scaled_weight_outside_of_fp16_is_refused(tmp_path: Path) -> None:
    folder = write_minicpm(tmp_path / 'checkpoint')
    tensors = load_file(folder / 'model.safetensors')
    tensors['model.embed_tokens.weight'][7, 7] = 30_000         # three times this is too much
    save_file(tensors, folder / 'model.safetensors', metadata={'format': 'pt'})
    with pytest.raises(ValueError, match='magnitude 90000 is outside the fp16 range'):
        converted(folder, tmp_path / 'store', neurons='fp16', calibrate=False)


def test_prosparse_is_llama(tmp_path: Path) -> None:
    block = open_checkpoint(write_fatrelu(tmp_path, model_type='sparsellama')).spec.feed_forward
    assert (block.activation, block.relu_threshold) == ('relu', THRESHOLD)
    assert block.sparse_by_nature


@pytest.mark.parametrize(('write', 'changes', 'said'), [
    (write_checkpoint, {'hidden_act': 'fatrelu'}, 'hidden_act_param, its threshold, is missing'),
    (write_checkpoint, {'is_causal': False}, 'is_causal is false'),
    (write_minicpm, {'scale_emb': None}, 'scale_emb is None; it must be a positive number'),
    (write_minicpm, {'scale_depth': 'deep'}, "scale_depth is 'deep'"),
    (write_minicpm, {'dim_model_base': 0}, 'dim_model_base is 0'),
    (write_minicpm, {'num_experts': 8}, 'mixtures of experts'),
    (write_opt, {'num_attention_heads': 16}, 'head_dim is 4; it must be a multiple of 8'),
    (write_opt, {'word_embed_proj_dim': 32}, 'word_embed_proj_dim is 32'),
    (write_opt, {'activation_function': 'elu'}, "activation is 'elu'"),
    (write_opt, {'_remove_final_layer_norm': True}, '_remove_final_layer_norm'),
    (write_opt, {'layer_norm_elementwise_affine': False}, 'layer_norm_elementwise_affine'),
])
def test_what_is_refused(tmp_path: Path, write, changes: dict, said: str) -> None:
    folder = write(tmp_path)
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**config, **changes}))
    with pytest.raises(CheckpointError, match=re.escape(said)):
        open_checkpoint(folder)


@pytest.mark.parametrize(('metadata', 'said'), [
    ({'minicpm.logit_scale': 0.0}, 'minicpm.logit_scale is 0.0'),
    ({'minicpm.expert_count': 8}, 'mixtures of experts'),
])
def test_gguf_files_that_are_refused(tmp_path: Path, metadata: dict, said: str) -> None:
    write_gguf(write_minicpm(tmp_path / 'checkpoint'), tmp_path / 'model.gguf', metadata=metadata)
    with pytest.raises(CheckpointError, match=re.escape(said)):
        open_checkpoint(tmp_path / 'model.gguf')
