"""Calibration of bundled stores: what is recorded, what predictors say, what gating costs."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
import re
import shutil
import statistics

from family_checkpoints import VARIANTS, reference_of, write_opt
import numpy as np
from planted_checkpoint import write_planted_checkpoint
import pytest
from refusals import assert_error
from safetensors.numpy import load_file
from tiny_checkpoint import converted, write_checkpoint
import torch

from bench.faults.damage import flip_bit
from flash_llm_ros.checked_fields import FieldError
from flash_llm_ros.cli.main import main
from flash_llm_ros.convert import calibration
from flash_llm_ros.convert.calibration import CalibrationOptions, recalibrate
from flash_llm_ros.convert.calibration_text import default_text
from flash_llm_ros.convert.conversion import convert
from flash_llm_ros.convert.options import ConversionOptions
from flash_llm_ros.convert.recording import Recording, record
from flash_llm_ros.engine import Engine, EngineConfig
from flash_llm_ros.engine.model.predictors import PredictorStack
from flash_llm_ros.store.errors import ChecksumError, ErrorCode
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.neuron_reader import NeuronReader
from flash_llm_ros.store.predictor_form import PredictorForm

TEXT = 'The robot turns left at the door, waits, and asks the next person for the way. ' * 9
FORMS = (PredictorForm('low_rank', 64), PredictorForm('sketch', 2), PredictorForm('sketch', 4))
OPTIONS = CalibrationOptions(most_tokens=700)


class Interrupted(Exception):
    """What a test raises in the middle of a calibration."""


def quiet(what: str, done: int, total: int) -> None:
    pass


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob('*') if path.is_file()}


@contextmanager
def opened(store: Path, **options: object) -> Iterator[Engine]:
    engine = Engine.open(EngineConfig(store, 60_000_000, lock_memory=False, **options))
    try:
        yield engine
    finally:
        engine.close()


def recorded(store: Path, folder: Path) -> list[np.ndarray]:
    """FFN inputs of each layer over 700 tokens, in two pieces of the context's 512."""
    with opened(store, mode='exact', context_length=512, kv_cache='int16') as engine:
        tokens = np.array(engine.tokenize(TEXT)[:700], np.int64)
        sections = [('bundle', layer) for layer in range(engine.model.spec.layers)]
        recording: Recording = record(engine, tokens, sections, folder, lambda done, total: None)
        return [recording.read(*section) for section in sections]


@pytest.fixture(scope='module')
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose active sets follow from a few directions; its checkpoint lies beside it."""
    folder = tmp_path_factory.mktemp('planted')
    write_planted_checkpoint(folder / 'checkpoint')
    converted(folder / 'checkpoint', folder / 'store', neurons='fp16')
    return folder / 'store'


@pytest.fixture
def store(gated_store: Path, tmp_path: Path) -> Path:
    return shutil.copytree(gated_store, tmp_path / 'robot.store')


def ffn(store: Path, layer: int) -> list[np.ndarray]:
    """Gate and up rows and down columns of the checkpoint, float64 [ffn, d]."""
    tensors = load_file(store.parent / 'checkpoint/model.safetensors')
    gate, up, down = (tensors[f'model.layers.{layer}.mlp.{part}_proj.weight'].astype(np.float64)
                      for part in ('gate', 'up', 'down'))
    return [gate, up, down.T]


def test_neurons_lie_in_the_order_of_their_frequency(planted: Path, tmp_path: Path) -> None:
    """The same neurons as in the checkpoint, each with all its rows, and busy ones in front."""
    store, inputs = FlashStore.open(planted), recorded(planted, tmp_path / 'recording')
    store.verify()
    with NeuronReader(store) as reader:
        for layer, x in enumerate(inputs):
            bundles = reader.bundles('bundle', layer)
            parts = np.stack(ffn(planted, layer), 1).astype(np.float16).astype(np.float32)
            # The same multiset of bundles, by a column that no two share.
            assert not np.array_equal(bundles, parts)
            ours, theirs = (np.lexsort(rows[:, :, 1].T) for rows in (bundles, parts))
            np.testing.assert_array_equal(bundles[ours], parts[theirs])
            counts = (x @ bundles[:, 0].T > 0).sum(axis=0)      # on text it was not made from
            quarters = counts.reshape(4, -1).sum(axis=1)
            assert (np.diff(quarters) < 0).all() and quarters[0] > 0.5 * counts.sum()


def test_biases_go_with_their_neurons(tmp_path: Path) -> None:
    """A block without gate, whose biases are resident, against transformers."""
    checkpoint = write_opt(tmp_path / 'checkpoint')
    store = converted(checkpoint, tmp_path / 'store', neurons='fp16').path
    theirs = load_file(checkpoint / 'model.safetensors')
    ours = load_file(store / 'resident.safetensors')
    for layer in range(3):
        before, now = theirs[f'model.decoder.layers.{layer}.fc1.bias'], ours[f'up_bias.{layer}']
        assert not np.array_equal(before, now)
        np.testing.assert_array_equal(np.sort(before), np.sort(now))
    with opened(store, mode='exact', context_length=256) as engine:
        tokens = np.array(engine.tokenize(TEXT)[:60], np.int64)
        logits = np.empty((60, engine.model.spec.embedding.vocab_size), np.float32)
        engine.model.forward(tokens, 0, True, logits)
    with torch.no_grad():
        expected = reference_of(checkpoint)(torch.from_numpy(tokens[None])).logits[0].numpy()
    np.testing.assert_allclose(logits, expected, atol=0.02 * expected.std())


def test_zeros_of_squared_relu(tmp_path: Path) -> None:
    """As transformers' model has them; its predictors are used."""
    checkpoint = VARIANTS['nemotron'](tmp_path / 'checkpoint')
    store = converted(checkpoint, tmp_path / 'store', neurons='fp16', texts=[TEXT * 4])
    reference, zeros = reference_of(checkpoint), []
    for layer in reference.model.layers:
        layer.mlp.act_fn.register_forward_hook(
            lambda module, inputs, output: zeros.append(float((output == 0).float().mean())))
    with opened(store.path, mode='gated', context_length=256) as engine:
        tokens = engine.tokenize(TEXT)[:256]
        engine.model.forward(np.array(tokens[:1]), 0, False)
        assert 0 < engine.stats()['active_neurons'] < engine.stats()['total_neurons']
    with torch.no_grad():
        reference(torch.tensor([tokens]))
    assert [facts.zeros for facts in store.manifest.calibration.predictors] == [
        pytest.approx(share, abs=0.05) for share in zeros]


def test_predictors_find_what_they_say(planted: Path, tmp_path: Path) -> None:
    """Against active sets in float64, on text that calibration never saw."""
    store, inputs = FlashStore.open(planted), recorded(planted, tmp_path / 'recording')
    found = store.manifest.calibration
    predictors = PredictorStack(store)
    with NeuronReader(store) as reader:
        for layer in range(3):
            bundles = reader.bundles('bundle', layer).astype(np.float64)
            x = inputs[layer][::10]
            h = np.maximum(x @ bundles[:, 0].T, 0) * (x @ bundles[:, 1].T)
            contribution = np.abs(h) * np.linalg.norm(bundles[:, 2], axis=1)
            wanted = np.array([predictors.wanted(layer, row).copy() for row in x]).astype(bool)
            facts = found.predictors[layer]
            assert contribution[wanted].sum() / contribution.sum() == pytest.approx(
                facts.recall, abs=0.02)
            assert facts.recall > 0.98
            assert (contribution > 0)[wanted].mean() == pytest.approx(facts.precision, abs=0.15)
            assert wanted.mean() < 0.3
            assert (contribution == 0).mean() == pytest.approx(facts.zeros, abs=0.02)


def test_the_price_is_that_of_mode_gated(planted: Path) -> None:
    """Losses in float64, token by token through the engine, against the manifest's figures."""
    found, losses, shares = FlashStore.open(planted).manifest.calibration, {}, []

    class Watcher:
        def feed_forward(self, layer: int, x: np.ndarray, active: np.ndarray | None) -> None:
            shares.append(active.mean())

    text = default_text()
    for mode in ('exact', 'gated'):
        with opened(planted, mode=mode) as engine:
            tokens = np.array(engine.tokenize(text)[:CalibrationOptions.most_tokens], np.int64)
            piece = min(512, len(tokens) // 8)
            engine.model.observer = Watcher() if mode == 'gated' else None
            logits = np.empty((1, engine.model.spec.embedding.vocab_size), np.float32)
            losses[mode] = []
            for number in (3, 7):       # every fourth piece is held out
                ids = tokens[number * piece:(number + 1) * piece]
                for position, following in enumerate(ids[1:]):
                    engine.model.forward(ids[position:position + 1], position, mode == 'exact',
                                         logits)
                    row = logits[0].astype(np.float64)
                    losses[mode].append(np.log(np.exp(row - row.max()).sum()) + row.max()
                                        - row[following])
    ratio = np.exp(np.mean(losses['gated']) - np.mean(losses['exact']))
    assert found.perplexity_ratio == pytest.approx(ratio, abs=2e-3)
    differences = np.array(losses['gated']) - np.array(losses['exact'])
    error = ratio * statistics.stdev(differences) / len(differences) ** 0.5
    assert found.perplexity_error == pytest.approx(error, rel=0.3, abs=2e-4)
    assert found.active_share == pytest.approx(np.mean(shares), abs=2e-3)
    assert found.active_share <= found.groups_share <= 1
    assert 0.9 < found.perplexity_ratio < 1.1


@pytest.mark.parametrize('form', FORMS, ids=lambda form: f'{form.kind}-{form.size}')
def test_graphs_say_what_their_weights_say(store: Path, tmp_path: Path, form: PredictorForm
                                           ) -> None:
    """Against float64 on the stored values; ONNX Runtime rounds the inputs to 8 bits."""
    found = recalibrate(store, [TEXT], CalibrationOptions(most_tokens=700, forms=(form,)), quiet)
    facts = found.manifest.calibration
    assert {(one.kind, one.size) for one in facts.predictors} == {(form.kind, form.size)}
    predictors, inputs = PredictorStack(found), recorded(store, tmp_path / 'recording')
    tensors = load_file(store / found.predictor_weights)
    for layer in range(3):
        z = x = inputs[layer][::13].astype(np.float64)
        for name in form.matrices(256, 64):
            z = z @ stored_matrix(tensors, f'predictors.{layer}.{name}', z.shape[1]).T
        scores = z + tensors[f'predictors.{layer}.bias']
        expected = scores > facts.thresholds[layer]
        wanted = np.array([predictors.wanted(layer, row).copy() for row in x.astype(np.float32)])
        sure = np.abs(scores - facts.thresholds[layer]) > 0.05 * scores.std()
        assert sure.mean() > 0.9 and 0.05 < expected.mean() < 0.99
        np.testing.assert_array_equal(wanted.astype(bool)[sure], expected[sure])


def stored_matrix(tensors: dict[str, np.ndarray], name: str, columns: int) -> np.ndarray:
    """float64 [rows, columns], value by value from the bits."""
    data, scales = tensors[f'{name}.data'], tensors[f'{name}.scales'].astype(np.float64)
    bits = {16: 2 if f'{name}.offsets.data' not in tensors else 4}.get(data.shape[2], 8)
    values = np.stack([(data >> shift) & ((1 << bits) - 1) for shift in range(0, 8, bits)], 3)
    values = values.reshape(*data.shape[:2], -1).astype(np.float64) - 2 ** (bits - 1)
    values *= scales[:, :, None]
    if f'{name}.offsets.data' in tensors:
        values += stored_matrix(tensors, f'{name}.offsets', data.shape[1])[:, :, None]
    return values.reshape(len(data), -1)[:, :columns]


def test_predictors_stay_within_their_bytes(store: Path) -> None:
    sizes = []
    for budget in (200_000, 30_000):
        found = recalibrate(store, [TEXT], CalibrationOptions(
            most_tokens=700, predictor_bytes=budget), quiet)
        sizes.append(found.manifest.calibration.predictor_bytes)
        assert sizes[-1] <= budget
        tensors = load_file(store / found.predictor_weights)
        assert sum(tensor.nbytes for tensor in tensors.values()) == sizes[-1]
    assert sizes[1] < sizes[0]


def test_the_least_bytes_of_predictors_are_told(store: Path) -> None:
    """And they are enough."""
    before = content(store)

    def recalibrated(size: int) -> FlashStore:
        return recalibrate(store, [TEXT], CalibrationOptions(most_tokens=700,
                                                             predictor_bytes=size), quiet)

    with pytest.raises(FieldError, match=r'predictor_bytes is 1; .* at least') as refused:
        recalibrated(1)
    least = int(re.search(r'at least (\d+)', str(refused.value)).group(1))
    with pytest.raises(FieldError, match=f'at least {least}'):
        recalibrated(least - 1)
    assert content(store) == before
    assert recalibrated(least).manifest.calibration.predictor_bytes == least


def test_one_at_a_time_changes_a_store(store: Path, tmp_path: Path) -> None:
    """While it is calibrated, nobody else calibrates or replaces it."""
    checkpoint = write_checkpoint(tmp_path / 'checkpoint', hidden_act='relu')
    refused = []

    def meanwhile(step: str, done: int, total: int) -> None:
        if refused:
            return
        before = content(store)
        for change in (lambda: recalibrate(store, [TEXT], OPTIONS, quiet),
                       lambda: convert(checkpoint, store, ConversionOptions(replace=True), quiet)):
            with pytest.raises(FileExistsError, match=r'robot\.store is being written') as found:
                change()
            refused.append(found.value)
        assert content(store) == before
        assert sorted(path.name for path in tmp_path.iterdir()) == ['checkpoint', 'robot.store']

    recalibrate(store, [TEXT], OPTIONS, meanwhile).verify()
    assert len(refused) == 2
    recalibrate(store, [TEXT], OPTIONS, quiet).verify()


# ---- a finished store gets other predictors, or stays as it was ----------------------------------

def test_other_text_gives_other_predictors(store: Path, gated_store: Path) -> None:
    found = recalibrate(store, [TEXT], OPTIONS, quiet)
    found.verify()
    before, now = FlashStore.open(gated_store).manifest.calibration, found.manifest.calibration
    assert now.text_tokens == 700 and now.predictor_folder == 'predictors-2'
    assert now.thresholds != before.thresholds
    assert not (store / 'predictors').exists() and not (store / 'predictors.safetensors').exists()
    assert (store / 'neurons.bin').read_bytes() == (gated_store / 'neurons.bin').read_bytes()
    assert (store / 'resident.safetensors').read_bytes() == (
        gated_store / 'resident.safetensors').read_bytes()


def test_a_split_store_has_nothing_to_calibrate(int8_store: Path) -> None:
    before = content(int8_store)
    with assert_error(ErrorCode.INVALID_PARAMETER, 'nothing to calibrate'):
        recalibrate(int8_store, [TEXT], OPTIONS, quiet)
    assert FlashStore.open(int8_store).manifest.calibration is None
    assert content(int8_store) == before


@pytest.mark.parametrize(('what', 'at'), [('reading text', 600), ('calibrating', 2),
                                          ('measuring', 1)])
def test_an_interrupted_calibration_leaves_the_store(store: Path, what: str, at: int) -> None:
    before = content(store)

    def progress(step: str, done: int, total: int) -> None:
        if (step, done >= at) == (what, True):
            raise Interrupted
    with pytest.raises(Interrupted):
        recalibrate(store, [TEXT], OPTIONS, progress)
    assert content(store) == before


@pytest.mark.parametrize('call', [0, 1])
def test_a_killed_calibration_leaves_a_store_that_the_next_one_cleans_up(
        store: Path, call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a loss of power: what is written stays, nothing is tidied up."""
    manifest = (store / 'manifest.yaml').read_bytes()
    with monkeypatch.context() as patch:
        def killed(*arguments: object) -> None:
            raise KeyboardInterrupt
        patch.setattr(calibration, 'discard_predictors', lambda *arguments: None)
        if call == 0:
            patch.setattr(calibration, 'publish_calibration', killed)
        else:
            patch.setattr('flash_llm_ros.store.calibration_files._remove_unlisted', killed)
            patch.setattr(calibration, 'next_folder', lambda store: 'predictors-2')
        with pytest.raises(KeyboardInterrupt):
            recalibrate(store, [TEXT], OPTIONS, quiet)
    assert ((store / 'manifest.yaml').read_bytes() == manifest) == (call == 0)
    FlashStore.open(store).verify()
    recalibrate(store, [TEXT], OPTIONS, quiet)
    names = {path.name for path in store.iterdir() if path.name.startswith('predictors')}
    folder = FlashStore.open(store).manifest.calibration.predictor_folder
    assert names == {folder, f'{folder}.safetensors'}


def test_the_reader_finds_damage(store: Path) -> None:
    section = FlashStore.open(store).manifest.geometry.section('bundle', 1)
    size = FlashStore.open(store).manifest.geometry.group_bytes
    flip_bit(store / 'neurons.bin', (section.first_group + 1) * size + 5)
    with NeuronReader(FlashStore.open(store)) as reader:
        reader.bundles('bundle', 0)
        with pytest.raises(ChecksumError, match=f'group {section.first_group + 1} .bundle of lay'):
            reader.bundles('bundle', 1)


def test_the_command(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(['calibrate', str(store), '--tokens', '256', '--measured-tokens', '32']) == 0
    out, found = capsys.readouterr().out, FlashStore.open(store).manifest.calibration
    assert f'perplexity times {found.perplexity_ratio:.4f} ± {found.perplexity_error:.4f}' in out
    assert f'{found.active_share:.1%} of the neurons' in out and found.text_tokens == 256


def test_the_command_refuses(store: Path, int8_store: Path, tmp_path: Path,
                             capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: object, store: Path = store) -> str:
        assert main(['calibrate', str(store), *map(str, arguments)]) == 1
        return capsys.readouterr().err

    before = content(store)
    (short := tmp_path / 'short.txt').write_text('Too short.')
    assert 'calibration text' in refused('--text', short)
    assert 'missing.txt' in refused('--text', tmp_path / 'missing.txt')
    (broken := tmp_path / 'broken.jsonl').write_text('{"text": "fine"}\n{"text": 7}\n')
    assert 'broken.jsonl, line 2' in refused('--text', broken)
    assert 'predictor-bytes' in refused('--predictor-bytes', 'many')
    assert 'measured_tokens is 0' in refused('--measured-tokens', '0')
    assert 'nothing to calibrate' in refused(store=int8_store)
    assert content(store) == before
