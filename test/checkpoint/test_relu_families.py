"""OPT and FATReLU models against transformers, and active sets that are known."""

import json
from pathlib import Path
import re

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_checkpoint import CHAT_TEMPLATE, byte_tokenizer, write_checkpoint
import torch
from transformers import LlamaForCausalLM, OPTConfig, OPTForCausalLM, PreTrainedModel

from flash_llm_ros.calibrate.ordered_store import OrderOptions, order_store
from flash_llm_ros.checkpoint.errors import CheckpointError
from flash_llm_ros.checkpoint.ffn_file import write_ffn_file
from flash_llm_ros.checkpoint.open import open_checkpoint
from flash_llm_ros.convert.calibration import CalibrationOptions, recalibrate
from flash_llm_ros.convert.conversion import ConversionOptions, convert
from flash_llm_ros.convert.ffn_weights import FfnWeights
from flash_llm_ros.convert.traces import record
from flash_llm_ros.engine import Engine, EngineConfig, GenerationRequest
from flash_llm_ros.store.aggressive import NEURON_ORDER
from flash_llm_ros.store.neuron_reader import NeuronReader
from flash_llm_ros.store.tensor_file import TensorFile

THRESHOLD = 0.1
RANK = 4
PROMPTS = ('Where is the charging station?', 'x', 'Turn left, then stop. ' * 5)


def write_opt(folder: Path, seed: int = 5, **changes: object) -> Path:
    """Random weights and biases, large enough to matter."""
    torch.manual_seed(seed)
    config = OPTConfig(**{
        'vocab_size': 258, 'hidden_size': 64, 'num_hidden_layers': 3, 'ffn_dim': 256,
        'num_attention_heads': 4, 'max_position_embeddings': 300, 'word_embed_proj_dim': 64,
        'bos_token_id': 256, 'eos_token_id': 257, 'pad_token_id': 1, **changes})
    model = OPTForCausalLM(config)
    for name, tensor in model.state_dict().items():
        if 'norm' in name and name.endswith('weight'):
            tensor.copy_(1 + 0.1 * torch.randn_like(tensor))
        else:
            tensor.copy_(torch.randn_like(tensor) * (0.3 if tensor.ndim == 1
                                                     else tensor.shape[1] ** -0.5))
    embedding = model.model.decoder.embed_tokens.weight.data
    embedding *= 4
    model.save_pretrained(folder)
    (folder / 'chat_template.jinja').write_text(CHAT_TEMPLATE)
    byte_tokenizer().save(str(folder / 'tokenizer.json'))
    return folder


def write_fatrelu(folder: Path, **changes: object) -> Path:
    return write_checkpoint(folder, seed=9, hidden_act='fatrelu', hidden_act_param=THRESHOLD,
                            **changes)


def opt_reference(folder: Path) -> PreTrainedModel:
    return OPTForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


class FatRelu(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > THRESHOLD, x, 0.0)


def fatrelu_reference(folder: Path) -> PreTrainedModel:
    """transformers knows no fatrelu: a copy that says silu gets other modules in its place."""
    copy = folder.with_name(f'{folder.name}-silu')
    copy.mkdir(exist_ok=True)
    config = json.loads((folder / 'config.json').read_text())
    (copy / 'config.json').write_text(json.dumps({**config, 'hidden_act': 'silu'}))
    save_file(load_file(folder / 'model.safetensors'), copy / 'model.safetensors',
              metadata={'format': 'pt'})
    model = LlamaForCausalLM.from_pretrained(copy, dtype=torch.float32).eval()
    for layer in model.model.layers:
        layer.mlp.act_fn = FatRelu()
    return model


MODELS = {
    'opt': (write_opt, opt_reference),
    'opt-post-norm': (lambda folder: write_opt(folder, do_layer_norm_before=False),
                      opt_reference),
    'opt-untied': (lambda folder: write_opt(folder, tie_word_embeddings=False), opt_reference),
    'opt-no-bias': (lambda folder: write_opt(folder, enable_bias=False), opt_reference),
    'fatrelu': (write_fatrelu, fatrelu_reference),
}


@pytest.fixture(scope='module', params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
          ) -> tuple[Path, PreTrainedModel]:
    write, load = MODELS[request.param]
    folder = write(tmp_path_factory.mktemp(request.param) / 'checkpoint')
    return folder, load(folder)


def store_of(checkpoint: Path, **options: object) -> Path:
    store = checkpoint.with_name('-'.join(['store', *map(str, options.values())]))
    if not store.exists():
        convert(checkpoint, store, ConversionOptions(**{'calibrate': False, **options}),
                lambda what, done, total: None)
    return store


def open_engine(store: Path, **options: object) -> Engine:
    return Engine.open(EngineConfig(store, 40_000_000, lock_memory=False, context_length=256,
                                    **options))


def logits_of(engine: Engine, tokens: np.ndarray) -> np.ndarray:
    logits = np.empty((len(tokens), engine.model.spec.embedding.vocab_size), np.float32)
    engine.model.forward(tokens, 0, True, logits)
    return logits


@pytest.mark.parametrize('core', ['native', 'numpy'])
def test_greedy_tokens_and_logits(model: tuple[Path, PreTrainedModel], core: str) -> None:
    checkpoint, reference = model
    engine = open_engine(store_of(checkpoint, neurons='fp16'), core=core)
    try:
        for prompt in PROMPTS if core == 'native' else PROMPTS[:1]:
            generation = engine.start(GenerationRequest(prompt, raw=True, max_tokens=30))
            for _ in generation:
                pass
            given = torch.tensor([generation.prompt_tokens])
            expected = reference.generate(given, max_new_tokens=30, do_sample=False,
                                          pad_token_id=257, eos_token_id=257,
                                          attention_mask=torch.ones_like(given))
            assert generation.tokens == expected[0, given.shape[1]:].tolist()
        tokens = np.array(generation.prompt_tokens[:60], np.int64)
        logits = logits_of(engine, tokens)
    finally:
        engine.close()
    with torch.no_grad():
        expected = reference(torch.from_numpy(tokens[None])).logits[0].numpy()
    wrong = np.abs(logits - expected) / expected.std()
    assert np.quantile(wrong, 0.99) < 0.01
    assert wrong.max() < 0.05           # fp16 takes some gates over a threshold that is a step


def test_a_quantised_store_stays_close(model: tuple[Path, PreTrainedModel]) -> None:
    checkpoint, reference = model
    engine = open_engine(store_of(checkpoint, neurons='int8'))
    tokens = np.arange(20, 80)
    logits = logits_of(engine, tokens)
    engine.close()
    with torch.no_grad():
        expected = reference(torch.from_numpy(tokens[None])).logits[0].numpy()
    assert np.corrcoef(logits.ravel(), expected.ravel())[0, 1] > 0.998


# ---- active sets that are known ------------------------------------------------------------------

def plant(checkpoint: Path, names: str, away: float) -> Path:
    """Make the rows that decide low-rank, and switch most of them off by a constant channel.

    Channel 0 of the embedding is large and the same for every token; `away` is what it adds to
    what the activation function takes.
    """
    tensors = dict(load_file(checkpoint / 'model.safetensors'))
    random = np.random.default_rng(3)
    for name, tensor in tensors.items():
        if re.search(r'embed_tokens', name):
            tensor[:, 0] = 12.0
        if re.search(r'norm\.weight$', name):
            tensor[:] = 1
        if re.search(r'(o_proj|out_proj|down_proj|fc2)\.weight$', name):
            tensor *= 0.3
            tensor[0] = 0
        if re.search(r'(norm|out_proj|fc2)\.bias$|embed_positions', name):
            tensor[..., 0] = 0
        if re.search(names, name):
            rows, d = tensor.shape
            tensor[:] = (random.standard_normal((rows, RANK)) / RANK ** 0.5
                         @ random.standard_normal((RANK, d)) / d ** 0.5)
            tensor[:, 0] = away / 12.0
    save_file(tensors, checkpoint / 'model.safetensors', metadata={'format': 'pt'})
    return checkpoint


SPARSE = {
    'opt': (lambda folder: plant(write_opt(folder, ffn_dim=1024, tie_word_embeddings=False),
                                 r'fc1\.weight$', -1.0), opt_reference),
    'fatrelu': (lambda folder: plant(write_fatrelu(folder, intermediate_size=1024),
                                     r'gate_proj\.weight$', -1.6), fatrelu_reference),
}


@pytest.fixture(scope='module', params=SPARSE)
def sparse_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
                 ) -> tuple[str, Path, PreTrainedModel]:
    write, load = SPARSE[request.param]
    folder = write(tmp_path_factory.mktemp(f'sparse-{request.param}') / 'checkpoint')
    return request.param, folder, load(folder)


def active_sets(kind: str, checkpoint: Path, layer: int, x: np.ndarray
                ) -> tuple[np.ndarray, np.ndarray]:
    """Which neurons are active, and contributions, float64 from the checkpoint: [tokens, ffn]."""
    w = {name: tensor.astype(np.float64)
         for name, tensor in load_file(checkpoint / 'model.safetensors').items()}
    if kind == 'opt':
        prefix = f'model.decoder.layers.{layer}.fc'
        h = np.maximum(x @ w[f'{prefix}1.weight'].T + w[f'{prefix}1.bias'], 0)
        active, down = h > 0, w[f'{prefix}2.weight']
    else:
        prefix = f'model.layers.{layer}.mlp.'
        gate = x @ w[f'{prefix}gate_proj.weight'].T
        active, down = gate > THRESHOLD, w[f'{prefix}down_proj.weight']
        h = gate * active * (x @ w[f'{prefix}up_proj.weight'].T)
    return active, np.abs(h) * np.linalg.norm(down, axis=0)


def test_the_predictor_finds_the_active_set(sparse_model: tuple[str, Path, PreTrainedModel]
                                            ) -> None:
    kind, checkpoint, reference = sparse_model
    store = store_of(checkpoint, neurons='fp16', calibrate=True, rank=64)
    engine = open_engine(store, mode='sparse')
    predictors = engine.model.feed_forward._predictors
    seen: list[tuple[int, np.ndarray, np.ndarray]] = []
    plain = predictors.wanted

    def noted(layer: int, x: np.ndarray) -> np.ndarray:
        wanted = plain(layer, x)
        seen.append((layer, x.copy(), wanted.astype(bool)))
        return wanted

    predictors.wanted = noted
    try:
        generation = engine.start(GenerationRequest(PROMPTS[0], raw=True, max_tokens=40))
        for _ in generation:
            pass
    finally:
        engine.close()
    for layer in range(3):
        x = np.array([given for at, given, _ in seen if at == layer], np.float64)
        wanted = np.array([found for at, _, found in seen if at == layer])
        active, contribution = active_sets(kind, checkpoint, layer, x)
        assert 0.005 < active.mean() < 0.25                     # it is planted as meant
        assert contribution[wanted].sum() > 0.97 * contribution.sum()
        assert (wanted & ~active).sum() < 0.05 * (~active).sum()
    given = torch.tensor([generation.prompt_tokens])
    expected = reference.generate(given, max_new_tokens=40, do_sample=False, pad_token_id=257,
                                  eos_token_id=257, attention_mask=torch.ones_like(given))
    assert generation.tokens == expected[0, given.shape[1]:].tolist()


@pytest.mark.parametrize('activity', ['frequency', 'coactivation'])
def test_neurons_in_the_order_of_their_activity(sparse_model: tuple[str, Path, PreTrainedModel],
                                                tmp_path: Path, activity: str) -> None:
    """The same model, biases with their neurons; sparse mode works once it is calibrated."""
    _, checkpoint, reference = sparse_model
    plain, ordered, text = store_of(checkpoint, neurons='fp16'), tmp_path / 'store', PROMPTS * 20
    found = order_store(plain, ordered, text, OrderOptions(activity=activity), lambda *_: None)
    assert found.manifest.calibration is None
    engine = open_engine(ordered)
    tokens = np.array(engine.tokenize(''.join(text))[:64], np.int64)
    logits = logits_of(engine, tokens)
    traces = record(engine, tokens.tolist(), tmp_path / 'traces', lambda *_: None)
    engine.close()
    with torch.no_grad():
        expected = reference(torch.from_numpy(tokens)[None]).logits[0].numpy()
    np.testing.assert_allclose(logits, expected, atol=0.02 * expected.std())
    with NeuronReader(found) as reader, TensorFile(ordered / NEURON_ORDER) as orders:
        counts = (FfnWeights(reader, found.manifest, 1).activations(traces.read(1)) != 0).sum(0)
        assert sorted(orders.read('1')) == list(range(len(counts)))
    half = len(counts) // 2
    if activity == 'frequency':
        assert counts[:half].sum() > 0.8 * counts.sum()
    recalibrate(ordered, list(text), tmp_path / 'work', CalibrationOptions(most_tokens=600),
                lambda *_: None)
    answers = []
    for options in ({}, {'mode': 'sparse'}):
        engine = open_engine(ordered, **options)
        generation = engine.start(GenerationRequest(PROMPTS[0], raw=True, max_tokens=20))
        for _ in generation:
            pass
        answers.append(generation.tokens)
        engine.close()
    assert answers[0] == answers[1]


# ---- what is refused -----------------------------------------------------------------------------

@pytest.mark.parametrize(('changes', 'said'), [
    ({'word_embed_proj_dim': 32}, 'word_embed_proj_dim is 32'),
    ({'activation_function': 'gelu'}, "activation is 'gelu'"),
    ({'_remove_final_layer_norm': True}, '_remove_final_layer_norm'),
    ({'layer_norm_elementwise_affine': False}, 'layer_norm_elementwise_affine'),
])
def test_other_opt_models_are_refused(tmp_path: Path, changes: dict, said: str) -> None:
    folder = write_opt(tmp_path)
    config = json.loads((folder / 'config.json').read_text())
    (folder / 'config.json').write_text(json.dumps({**config, **changes}))
    with pytest.raises(CheckpointError, match=re.escape(said)):
        open_checkpoint(folder)


def test_fatrelu_without_its_threshold_is_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path, hidden_act='fatrelu')
    with pytest.raises(CheckpointError, match='hidden_act_param'):
        open_checkpoint(folder)


def test_prosparse_is_llama(tmp_path: Path) -> None:
    folder = write_fatrelu(tmp_path, model_type='sparsellama')
    spec = open_checkpoint(folder).spec
    assert (spec.feed_forward.activation, spec.feed_forward.relu_threshold) == ('relu', THRESHOLD)
    assert spec.feed_forward.sparse_by_nature


def test_a_block_without_gate_takes_no_weights_of_gated_ones(tmp_path: Path) -> None:
    gated = open_checkpoint(write_fatrelu(tmp_path / 'gated'))
    names = [f'layers.{layer}.{part}' for layer in range(3) for part in ('gate', 'up', 'down')]
    write_ffn_file(tmp_path / 'relu.ffn', [(name, gated.rows(name)) for name in names], THRESHOLD)
    with pytest.raises(CheckpointError, match='without gate'):
        open_checkpoint(write_opt(tmp_path / 'opt'), tmp_path / 'relu.ffn')
