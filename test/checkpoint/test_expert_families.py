"""Families with experts against transformers and llama.cpp, from every kind of file."""

from dataclasses import replace
import json
from pathlib import Path
import re
import subprocess
import sys

from expert_checkpoints import EXPERT_FAMILIES, SHAPE, fused, write_model
from family_checkpoints import FamilyModel
from generation_cases import opened, opened_tightly
from gguf_checkpoint import write_gguf
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_checkpoint import byte_tokenizer, converted
import torch
from transformers import AutoModelForCausalLM, Qwen3MoeConfig

from bench.model.families import llama_cpp_answer
from bench.quality.reference_model import reference_choices
from flash_llm_ros.checkpoint.errors import CheckpointError
from flash_llm_ros.checkpoint.open import open_checkpoint
from flash_llm_ros.convert.calibration_text import default_text
from flash_llm_ros.convert.losses import log_softmax
from flash_llm_ros.engine import Engine, GenerationRequest
from flash_llm_ros.model_spec import ModelSpec
from flash_llm_ros.store.flash_store import FlashStore

PROMPTS = ('Where is the charging station?', 'x', 'Turn left, then stop. ' * 5)
TOKENS = np.arange(20, 80)


@pytest.fixture(scope='module', params=EXPERT_FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FamilyModel:
    torch.set_num_threads(1)
    folder = EXPERT_FAMILIES[request.param](tmp_path_factory.mktemp(request.param) / 'checkpoint')
    return FamilyModel(request.param, folder, AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32).eval())


@pytest.fixture(scope='module')
def store(model: FamilyModel) -> Path:
    """In fp16, which loses nothing."""
    return converted(model.checkpoint, model.checkpoint.with_name('store'), neurons='fp16').path


def exact(store: Path, opens=opened, **options) -> Engine:
    """With as little rounding as there is."""
    return opens(store, kv_cache='int16', **options)


def greedy(engine, prompt: str) -> tuple[list[int], list[int]]:
    """The tokens of a prompt, and 24 that follow."""
    generation = engine.start(GenerationRequest(prompt, raw=True, max_tokens=24))
    assert all(isinstance(piece, str) for piece in generation)
    return generation.prompt_tokens, generation.tokens


def neurons_of_a_token(spec: ModelSpec) -> tuple[int, int]:
    """How many it uses, of how many."""
    block, experts = spec.feed_forward, spec.feed_forward.experts
    routed, dense = spec.layers - experts.dense_layers, experts.dense_layers
    always = routed * experts.shared + dense * experts.dense_size
    return (always + routed * experts.active * block.size,
            always + routed * experts.count * block.size)


def logits_of(engine, step: int) -> np.ndarray:
    """Of TOKENS, so many at a time."""
    found = np.empty((len(TOKENS), 258), np.float32)
    for start in range(0, len(TOKENS), step):
        part = TOKENS[start:start + step]
        engine.model.forward(part, start, False, found[start:start + step])
    return found


def test_logits_and_greedy_tokens(model: FamilyModel, store: Path) -> None:
    """Prompt and step by step; with little room, with all, and whatever threads: same bytes."""
    with torch.no_grad():
        expected = model.reference(torch.from_numpy(TOKENS[None])).logits[0].numpy()
    found = []
    for opens, options in ((opened, {}), (opened_tightly, {'threads': 2})):
        engine = exact(store, opens, **options)
        answers = [greedy(engine, prompt) for prompt in PROMPTS]
        found.append(([logits_of(engine, step).tobytes() for step in (60, 1, 7)], answers))
        logits = [logits_of(engine, step) for step in (60, 1)]
        stats = engine.stats()
        engine.close()
        for each in logits:
            assert np.abs(each - expected).max() <= 1e-3 * np.abs(expected).max()
        assert stats['misses'] > 0
        active, total = neurons_of_a_token(engine.model.spec)
        assert stats['active_neurons'] * total == stats['total_neurons'] * active
    assert found[0] == found[1]
    for prompt, answer in found[0][1]:
        assert len(answer) == 24 or answer[-1] == 257
        assert answer == reference_choices(model.reference, prompt, answer)


def test_how_well_the_next_layer_is_foreseen(model: FamilyModel, store: Path) -> None:
    """Against transformers: the next layer's router, given what enters this layer's block."""
    blocks = [next(getattr(layer, name) for name in ('mlp', 'block_sparse_moe', 'feed_forward')
                   if hasattr(layer, name)) for layer in model.reference.model.layers]
    blocks = [block for block in blocks if hasattr(block, 'experts')]
    inputs: list[torch.Tensor] = []
    hooks = [block.register_forward_pre_hook(lambda _, given: inputs.append(given[0][0]))
             for block in blocks]
    foresight = FlashStore.open(store).manifest.foresight
    tokens = default_text().encode()[:foresight.text_tokens]
    tokenizer = byte_tokenizer()
    with torch.no_grad():
        model.reference(torch.tensor([tokenizer.encode(tokens.decode()).ids]))
    for hook in hooks:
        hook.remove()
    right = []
    for layer in range(len(blocks) - 1):
        likely, used = (chosen_by(blocks[layer + 1], entered)
                        for entered in inputs[layer:layer + 2])
        right.append((likely[:, :, None] == used[:, None, :]).any(-1).float())
    assert foresight.recall == pytest.approx(torch.cat(right).mean(0).tolist(), abs=0.01)


def chosen_by(block: torch.nn.Module, entered: torch.Tensor) -> torch.Tensor:
    """Experts of each token by transformers' router, the best first."""
    router = block.gate if hasattr(block, 'gate') else block.router
    bias = getattr(block, 'expert_bias', None)
    with torch.no_grad():
        logits, _, ids = router(entered) if bias is None else router(entered, bias)
    correction = getattr(router, 'e_score_correction_bias', bias)
    if correction is not None:
        ranked = logits.sigmoid() + correction
    else:
        statics = getattr(router, 'moe_statics', None)
        ranked = logits.softmax(-1) + (0 if statics is None else statics.e_score_correction_bias)
    return ids.gather(-1, ranked.gather(-1, ids).argsort(-1, descending=True))


def test_quantised_experts_stay_close(model: FamilyModel, tmp_path: Path) -> None:
    for neurons, least in (('int8', 0.995), ('int4', 0.95)):
        engine = exact(converted(model.checkpoint, tmp_path / neurons, neurons=neurons).path)
        found = logits_of(engine, 60)
        engine.close()
        with torch.no_grad():
            expected = model.reference(torch.from_numpy(TOKENS[None])).logits[0].numpy()
        assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > least


def test_other_files_are_the_same_model(model: FamilyModel, tmp_path: Path) -> None:
    """Fused tensors, and GGUF, whose greedy answers are llama.cpp's own."""
    folder = open_checkpoint(model.checkpoint)
    write_gguf(model.checkpoint, tmp_path / 'model.gguf')
    for path in (fused(model.checkpoint, tmp_path / 'fused'), tmp_path / 'model.gguf'):
        other = open_checkpoint(path)
        spec = replace(other.spec, name=folder.spec.name)
        if path.is_file():
            assert other.spec.norm.eps == pytest.approx(folder.spec.norm.eps)
            spec = replace(spec, norm=folder.spec.norm, max_context=folder.spec.max_context)
        assert spec == folder.spec
        for name, tensor in folder.tensors.items():
            np.testing.assert_allclose(other.rows(name), folder.rows(name), rtol=1e-6)
            if len(tensor.shape) == 3:
                np.testing.assert_array_equal(other.rows(name, 3, 5), folder.rows(name)[3:5])


def test_one_layer_of_experts_with_a_window(tmp_path: Path) -> None:
    """Which has no next layer to foresee; and no max_window_layers, in this family."""
    folder = write_model(tmp_path / 'checkpoint', Qwen3MoeConfig(
        **{**SHAPE, 'num_hidden_layers': 2}, head_dim=32, moe_intermediate_size=35, num_experts=5,
        intermediate_size=75, mlp_only_layers=[0], num_experts_per_tok=2, norm_topk_prob=True,
        use_sliding_window=True, sliding_window=9, max_window_layers=1))
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    reference.set_experts_implementation('eager')   # the others take no odd sizes
    with torch.no_grad():
        expected = reference(torch.from_numpy(TOKENS[None])).logits[0].numpy()
    engine = exact(converted(folder, tmp_path / 'store', neurons='fp16').path)
    logits = [logits_of(engine, step) for step in (60, 1)]
    engine.close()
    for each in logits:
        assert np.abs(each - expected).max() <= 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize('family', ['dots1', 'glm4_moe', 'ernie4_5_moe', 'lfm2_moe'])
def test_experts_whose_shares_are_0(family: str, tmp_path: Path) -> None:
    """Corrections choose three whose shares, of scores of thousands, are 0 or 1 each."""
    folder = EXPERT_FAMILIES[family](tmp_path / 'checkpoint')
    tensors = load_file(folder / 'model.safetensors')
    for name, values in tensors.items():
        if name.endswith(('mlp.gate.weight', 'feed_forward.gate.weight')):
            values *= 1e4
        elif name.endswith(('e_score_correction_bias', 'expert_bias')):
            values[..., :3], values[..., 3:] = 9, 0
    save_file(tensors, folder / 'model.safetensors', metadata={'format': 'pt'})
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = reference(torch.from_numpy(TOKENS[None])).logits[0].numpy()
    engine = exact(converted(folder, tmp_path / 'store', neurons='fp16').path)
    logits = [logits_of(engine, step) for step in (60, 1)]
    engine.close()
    for each in logits:
        assert np.abs(each - expected).max() <= 1e-3 * np.abs(expected).max()


@pytest.mark.parametrize('family', ['dots1', 'glm4_moe', 'ernie4_5_moe', 'lfm2_moe'])
def test_weights_of_experts_whose_shares_are_small(family: str, tmp_path: Path) -> None:
    """Down to 1e-30: what they are of each other counts. Against transformers' routers."""
    folder = EXPERT_FAMILIES[family](tmp_path / 'checkpoint')
    if family == 'ernie4_5_moe':        # whose shares are those of a softmax: 1 is large, if chosen
        tensors = load_file(folder / 'model.safetensors')
        for name, values in tensors.items():
            if name.endswith('e_score_correction_bias'):
                values[..., :3], values[..., 3:] = 9, 0
        save_file(tensors, folder / 'model.safetensors', metadata={'format': 'pt'})
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    engine = exact(converted(folder, tmp_path / 'store', neurons='fp16').path)
    routers, layer = engine.model.feed_forward.routers, engine.model.spec.routed_layers[0]
    block = reference.model.layers[layer]
    block = block.feed_forward if family == 'lfm2_moe' else block.mlp
    scores = np.random.default_rng(0).uniform(-70, -5, (32, 8)).astype(np.float32)
    x = (scores @ np.linalg.pinv(block.gate.weight.detach().numpy()).T).astype(np.float32)
    bias = (block.expert_bias,) if family == 'lfm2_moe' else ()
    with torch.no_grad():
        _, weights, ids = block.gate(torch.from_numpy(x), *bias)
    found_ids, found_weights = routers.choose(layer, x)
    found, expected = np.zeros((2, 32, 8))
    np.put_along_axis(found, found_ids, found_weights, 1)
    np.put_along_axis(expected, ids.numpy(), weights.numpy(), 1)
    engine.close()
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)


def test_gguf_against_llama_cpp(model: FamilyModel, tmp_path: Path) -> None:
    pytest.importorskip('xllamacpp', reason='not installed: requirements/bench.txt')
    write_gguf(model.checkpoint, tmp_path / 'model.gguf')
    engine = exact(converted(tmp_path / 'model.gguf', tmp_path / 'store', neurons='fp16').path)
    answers = [greedy(engine, prompt) for prompt in PROMPTS]
    logits = [np.empty((len(prompt + answer), 258), np.float32) for prompt, answer in answers]
    for (prompt, answer), found in zip(answers, logits, strict=True):
        for start in range(0, len(found), 64):
            engine.model.forward(np.array(prompt + answer)[start:start + 64], start, False,
                                 found[start:start + 64])
    engine.close()
    peer = subprocess.run(
        [sys.executable, '-m', 'bench.support.llama_cpp_greedy', str(tmp_path / 'model.gguf'),
         json.dumps([prompt for prompt, _ in answers])], capture_output=True, text=True,
        timeout=100, cwd=Path(__file__).parents[2])
    assert peer.returncode == 0, peer.stderr[-2000:]
    for (prompt, answer), found, theirs in zip(answers, logits, json.loads(peer.stdout),
                                               strict=True):
        assert answer == [token for token, _ in theirs][:len(answer)]
        likely = log_softmax(found)[len(prompt) - 1:-1]
        likely = likely[np.arange(len(answer)), answer]
        assert np.abs(likely - [value for _, value in theirs][:len(answer)]).max() < 1e-3 * np.abs(
            found).max()


@pytest.mark.parametrize('field', ['glm4moe.expert_weights_norm', 'dots1.expert_weights_norm',
                                   'dots1.expert_weights_scale'])
def test_gguf_without_a_field_is_what_llama_cpp_reads(field: str, tmp_path: Path) -> None:
    pytest.importorskip('xllamacpp', reason='not installed: requirements/bench.txt')
    family = field.split('.')[0].replace('4moe', '4_moe')
    write_gguf(EXPERT_FAMILIES[family](tmp_path / 'checkpoint'), tmp_path / 'model.gguf',
               metadata={field: None})
    engine = exact(converted(tmp_path / 'model.gguf', tmp_path / 'store', neurons='fp16').path)
    prompt, answer = greedy(engine, PROMPTS[2])
    engine.close()
    assert answer == llama_cpp_answer(tmp_path / 'model.gguf', prompt)[:len(answer)]


@pytest.mark.parametrize(('family', 'change', 'said'), [
    ('mixtral', {'num_experts_per_tok': 9}, 'active is 9; it must be at most count, 8'),
    ('mixtral', {'hidden_act': 'elu'}, "activation is 'elu'"),
    ('gpt_oss', {'swiglu_limit': 5.0}, 'swiglu_limit is 5.0; it must be 7.0'),
    ('gpt_oss', {'swiglu_alpha': 1.0}, 'swiglu_alpha is 1.0; it must be 1.702'),
    ('gpt_oss', {'quantization_config': {'quant_method': 'fp8'}}, 'weights are quantised by fp8'),
    ('mixtral', {'model_type': 'deepseek_v3'}, "model type 'deepseek_v3' is not supported"),
    ('qwen2_moe', {'mlp_only_layers': [1]}, 'only the first layers may be without experts'),
    ('qwen2_moe', {'decoder_sparse_step': 2}, 'decoder_sparse_step is 2; it must be 1'),
    ('dots1', {'n_group': 3}, 'groups is 3; it must be 1, or so many that 8 experts make equal'),
    ('dots1', {'topk_group': 5}, 'active_groups is 5; it must be at most groups, 4'),
    ('dots1', {'topk_group': 1}, 'active is 3; it must be no more than 1 of 4 groups have'),
    ('glm4_moe', {'routed_scaling_factor': 0}, 'routed_scaling_factor is 0; it must be a positive'),
    ('glm4_moe', {'first_k_dense_replace': 3}, 'dense_layers is 3; it must be fewer than all 3'),
    ('lfm2_moe', {'conv_bias': True}, 'conv_bias is true; convolutions have no biases here'),
    ('lfm2_moe', {'conv_L_cache': 1}, 'taps is 1; it must be an integer of at least 2'),
    ('lfm2_moe', {'layer_types': ['conv', 'mamba'] * 3}, 'layer_types has mamba; only'),
    ('lfm2_moe', {'num_hidden_layers': 3}, 'convolution.layers is (0, 2, 3); it must be some of 3'),
    ('ernie4_5_moe', {'moe_layer_interval': 2}, 'moe_layer_interval is 2; it must be 1'),
    ('ernie4_5_moe', {'moe_layer_end_index': 1}, 'moe_layer_end_index is 1; it must be the last'),
    ('ernie4_5_moe', {'use_bias': True}, 'use_bias is true'),
])
def test_what_is_refused(family: str, change: dict, said: str, tmp_path: Path) -> None:
    folder = EXPERT_FAMILIES[family](tmp_path)
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match=re.escape(said)):
        open_checkpoint(folder)


def test_experts_that_are_missing_or_of_another_shape(tmp_path: Path) -> None:
    folder = EXPERT_FAMILIES['mixtral'](tmp_path)
    tensors = load_file(folder / 'model.safetensors')
    name = 'model.layers.1.block_sparse_moe.experts.5.w2.weight'
    for changed, said in ((tensors | {name: tensors[name][:, :95]}, 'shape (8, 64, 95)'),
                          ({key: tensors[key] for key in tensors.keys() - {name}},
                           f'tensor {name} is missing')):
        save_file({key: np.ascontiguousarray(value) for key, value in changed.items()},
                  folder / 'model.safetensors', metadata={'format': 'pt'})
        with pytest.raises(CheckpointError, match=re.escape(said)):
            open_checkpoint(folder)
