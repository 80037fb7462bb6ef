"""ReLU models whose active sets are known: what their predictors find, and the order on flash."""

from pathlib import Path
import re
from typing import NamedTuple

from family_checkpoints import THRESHOLD, reference_of, write_fatrelu, write_opt
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_checkpoint import converted

from bench.quality.reference_model import reference_choices
from flash_llm_ros.convert.calibration import CalibrationOptions, recalibrate
from flash_llm_ros.convert.calibration_text import default_text
from flash_llm_ros.engine import Engine, EngineConfig, GenerationRequest
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.neuron_reader import NeuronReader
from flash_llm_ros.store.predictor_form import PredictorForm

RANK = 4
PROMPT = 'Where is the charging station?'
TEXT = f'{PROMPT} Turn left, then stop. ' * 20


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


PLANTED = {
    'opt': lambda folder: plant(write_opt(folder, ffn_dim=1024, tie_word_embeddings=False),
                                r'fc1\.weight$', -1.0),
    'fatrelu': lambda folder: plant(write_fatrelu(folder, intermediate_size=1024),
                                    r'gate_proj\.weight$', -1.6),
}


class Planted(NamedTuple):
    kind: str
    checkpoint: Path
    store: FlashStore


class Seen:
    """What entered each layer [tokens, d], and what gated passes used [tokens, ffn]."""

    def __init__(self) -> None:
        self.inputs, self.active = (tuple([] for _ in range(3)) for _ in range(2))

    def feed_forward(self, layer: int, ffn_input: np.ndarray, active: np.ndarray | None) -> None:
        self.inputs[layer].extend(ffn_input.astype(np.float64))
        if active is not None:
            self.active[layer].append(active.astype(bool))


@pytest.fixture(scope='module', params=PLANTED)
def planted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """Its neurons are in the order of TEXT; its predictors hold all that the rows are made of."""
    folder = tmp_path_factory.mktemp(f'planted-{request.param}')
    checkpoint = PLANTED[request.param](folder / 'checkpoint')
    converted(checkpoint, folder / 'store', neurons='fp16', texts=[TEXT])
    low_rank = CalibrationOptions(forms=(PredictorForm('low_rank', 64),), predictor_bytes=10 ** 6)
    return Planted(request.param, checkpoint, recalibrate(
        folder / 'store', [default_text()], low_rank, lambda *_: None))


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


def order_on_flash(planted: Planted, layer: int) -> np.ndarray:
    """The checkpoint's index of each stored neuron, found by the rows themselves."""
    name = {'opt': f'model.decoder.layers.{layer}.fc1.weight',
            'fatrelu': f'model.layers.{layer}.mlp.gate_proj.weight'}[planted.kind]
    rows = load_file(planted.checkpoint / 'model.safetensors')[name].astype(np.float16)
    places = {row.tobytes(): index for index, row in enumerate(rows)}
    with NeuronReader(planted.store) as reader:
        stored = reader.bundles('bundle', layer)[:, 0].astype(np.float16)
    return np.array([places[row.tobytes()] for row in stored])


def test_predictors_find_the_active_sets(planted: Planted) -> None:
    engine = Engine.open(EngineConfig(planted.store.path, 40_000_000, mode='gated',
                                      lock_memory=False, context_length=256))
    engine.model.observer = seen = Seen()
    try:
        generation = engine.start(GenerationRequest(PROMPT, raw=True, max_tokens=40))
        for _ in generation:
            pass
    finally:
        engine.close()
    for layer in range(3):
        wanted, order = np.array(seen.active[layer]), order_on_flash(planted, layer)
        x = np.array(seen.inputs[layer][-len(wanted):])         # the prompt was exact
        active, contribution = active_sets(planted.kind, planted.checkpoint, layer, x)
        active, contribution = active[:, order], contribution[:, order]
        assert 0.005 < active.mean() < 0.25                     # it is planted as meant
        assert contribution[wanted].sum() > 0.97 * contribution.sum()
        assert (wanted & ~active).sum() < 0.05 * (~active).sum()
    answer = generation.tokens
    assert len(answer) == 40 or answer[-1] == 257
    assert answer == reference_choices(reference_of(planted.checkpoint), generation.prompt_tokens,
                                       answer)


def test_the_most_active_neurons_come_first(planted: Planted) -> None:
    engine = Engine.open(EngineConfig(planted.store.path, 40_000_000, mode='exact',
                                      lock_memory=False, context_length=256))
    engine.model.observer = seen = Seen()
    tokens = np.array(engine.tokenize(TEXT)[:256], np.int64)
    for start in range(0, 256, 64):
        engine.model.forward(tokens[start:start + 64], start, True)
    engine.close()
    for layer in range(3):
        order = order_on_flash(planted, layer)
        active, _ = active_sets(planted.kind, planted.checkpoint, layer,
                                np.array(seen.inputs[layer]))
        assert sorted(order) == list(range(1024))
        counts = active[:, order].sum(0)
        assert counts[:512].sum() > 0.8 * counts.sum() > active[:, :512].sum()
