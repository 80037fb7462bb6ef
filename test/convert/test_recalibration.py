"""`flash_llm calibrate`: a finished store gets another calibration, or stays as it was."""

import json
import os
from pathlib import Path
import shutil

from generation_cases import opened
import numpy as np
import pytest
from safetensors.numpy import load_file

from flash_llm_ros.cli.main import main
from flash_llm_ros.convert import calibration
from flash_llm_ros.convert.calibration import CalibrationOptions, recalibrate
from flash_llm_ros.convert.calibration_text import read_texts
from flash_llm_ros.convert.ffn_weights import FfnWeights
from flash_llm_ros.convert.measured_loss import LossMeter
from flash_llm_ros.convert.traces import Traces
from flash_llm_ros.engine import Engine, EngineConfig, GenerationRequest
from flash_llm_ros.engine.model.predictors import PredictorStack
from flash_llm_ros.store.errors import ChecksumError
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.neuron_reader import NeuronReader
from flash_llm_ros.store.predictor_graph import PredictorForm

TEXT = ' '.join(f'The robot {verb} the {thing} near door {number}.' for number, (verb, thing) in
                enumerate((verb, thing) for verb in ('sees', 'takes', 'meets', 'drops', 'cleans')
                          for thing in ('box', 'person', 'other robot', 'table', 'red lamp')))
FORMS = (PredictorForm('low_rank', 64), PredictorForm('sketch', 2), PredictorForm('sketch', 4))
OPTIONS = CalibrationOptions(most_tokens=1024, measured_tokens=64, forms=FORMS)


class Interrupted(Exception):
    """What a test raises in the middle of a calibration."""


def quiet(what: str, done: int, total: int) -> None:
    pass


def interrupting(what: str, at: int):
    def progress(step: str, done: int, total: int) -> None:
        if (step, done >= at) == (what, True):
            raise Interrupted
    return progress


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob('*') if path.is_file()}


@pytest.fixture
def store(int8_store: Path, tmp_path: Path) -> Path:
    return shutil.copytree(int8_store, tmp_path / 'robot.store')


@pytest.fixture(scope='module')
def calibrated(int8_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('calibrated')
    path = shutil.copytree(int8_store, folder / 'robot.store')
    recalibrate(path, [TEXT], folder / 'work', OPTIONS, quiet)
    return path


def test_the_store_has_the_new_calibration_and_works(calibrated: Path, int8_store: Path) -> None:
    store = FlashStore.open(calibrated)
    store.verify()
    found = store.manifest.calibration
    assert found.text_tokens == 1024 and found.predictor_folder == 'predictors-2'
    assert not (calibrated / 'predictors').exists()
    assert not (calibrated / 'predictors.safetensors').exists()
    assert (calibrated / 'neurons.bin').read_bytes() == (int8_store / 'neurons.bin').read_bytes()
    assert set(found.perplexity) == {'0.00', *found.thresholds} == {'0.00', *found.layer_sparsity}
    for key, shares in found.layer_sparsity.items():
        assert np.mean(shares) == pytest.approx(float(key), abs=0.02)
    for facts in found.predictors:
        assert 0.5 < facts.recall <= 1 and 0.3 < facts.precision <= 1 and 0 < facts.kept <= 1
        assert facts.bytes > 0 and (facts.kind, facts.size) in [(f.kind, f.size) for f in FORMS]
    engine = Engine.open(EngineConfig(calibrated, 20_000_000, 'sparse', sparsity=0.6,
                                      down_reads='scattered', lock_memory=False))
    try:
        generation = engine.start(GenerationRequest('Where is the robot?', max_tokens=8))
        assert sum(1 for _ in generation) and len(generation.tokens) == 8
    finally:
        engine.close()


def test_measured_perplexity_is_that_of_sparse_mode(calibrated: Path) -> None:
    """Several tokens at once with zeros in place of neurons, and one by one without them."""
    found = FlashStore.open(calibrated).manifest.calibration
    limits = np.array(found.thresholds['0.60'])
    engine = opened(calibrated, 'native')
    try:
        tokens = np.array(engine.tokenize(TEXT)[:200], np.int64)
        meter = LossMeter(engine, [tokens])
        exact, ours = meter.perplexity(None), meter.perplexity(limits)
        assert meter.perplexity(None) == exact      # nothing is left behind
    finally:
        engine.close()
    engine = Engine.open(EngineConfig(calibrated, 20_000_000, 'sparse', sparsity=0.6,
                                      lock_memory=False))
    loss, logits = 0.0, np.empty((1, engine.model.spec.embedding.vocab_size), np.float32)
    try:
        for position, following in enumerate(tokens[1:]):
            engine.model.forward(tokens[position:position + 1], position, dense=False,
                                 logits=logits)
            row = logits[0].astype(np.float64)
            loss += np.log(np.exp(row - row.max()).sum()) + row.max() - row[following]
        left_out = 1 - engine.stats()['active_neurons'] / engine.stats()['total_neurons']
    finally:
        engine.close()
    assert ours == pytest.approx(np.exp(loss / (len(tokens) - 1)), rel=0.005)
    assert ours != pytest.approx(exact, rel=1e-4)
    assert left_out == pytest.approx(0.6, abs=0.1)


def test_equal_shares_are_measured_beside_ours(store: Path, tmp_path: Path) -> None:
    found = recalibrate(store, [TEXT], tmp_path / 'work', OPTIONS, quiet)
    thresholds, manifest = found.thresholds, found.store.manifest
    traces = Traces(tmp_path / 'work' / 'results' / 'inputs', manifest.model.layers, 64)
    learned = np.arange(1024) // 128 % 4 != 3
    with NeuronReader(found.store) as reader:
        for layer in range(manifest.model.layers):
            size = np.abs(FfnWeights(reader, manifest, layer).activations(
                traces.read(layer)[learned]).astype(np.float64))
            for key, limits in thresholds.uniform_thresholds.items():
                assert (size <= limits[layer]).mean() == pytest.approx(float(key), abs=0.005)
    assert set(thresholds.uniform_growth) == set(thresholds.growth) == set(thresholds.shares)
    for key, shares in thresholds.shares.items():
        if len(set(shares)) == 1:
            assert thresholds.thresholds[key] == thresholds.uniform_thresholds[key]
            assert thresholds.growth[key] == thresholds.uniform_growth[key]


@pytest.mark.parametrize(('what', 'at'), [
    ('reading text', 600), ('thresholds', 2), ('sensitivities', 2), ('perplexity', 3),
    ('calibrating', 2)])
def test_an_interrupted_calibration_leaves_the_store_and_goes_on(
        store: Path, calibrated: Path, tmp_path: Path, what: str, at: int) -> None:
    before = content(store)
    with pytest.raises(Interrupted):
        recalibrate(store, [TEXT], tmp_path / 'work', OPTIONS, interrupting(what, at))
    assert content(store) == before
    seen: list[tuple[str, int]] = []
    recalibrate(store, [TEXT], tmp_path / 'work', OPTIONS,
                lambda step, done, total: seen.append((step, done)))
    read = [done for step, done in seen if step == 'reading text']
    assert read[0] == (576 if what == 'reading text' else 1024)     # of 1024, in pieces of 512
    assert content(store) == content(calibrated)


@pytest.mark.parametrize('call', [0, 1])
def test_a_killed_calibration_leaves_a_store_that_the_next_one_cleans_up(
        store: Path, calibrated: Path, tmp_path: Path, call: int,
        monkeypatch: pytest.MonkeyPatch) -> None:
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
            recalibrate(store, [TEXT], tmp_path / 'work', OPTIONS, quiet)
    assert ((store / 'manifest.yaml').read_bytes() == manifest) == (call == 0)
    FlashStore.open(store).verify()
    recalibrate(store, [TEXT], tmp_path / 'work', OPTIONS, quiet)
    names = {path.name for path in store.iterdir() if path.name.startswith('predictors')}
    folder = FlashStore.open(store).manifest.calibration.predictor_folder
    assert names == {folder, f'{folder}.safetensors'}


def test_other_text_starts_anew(store: Path, tmp_path: Path) -> None:
    recalibrate(store, [TEXT], tmp_path / 'work', OPTIONS, quiet)
    first = FlashStore.open(store).manifest.calibration
    recalibrate(store, [TEXT[::-1]], tmp_path / 'work', OPTIONS, quiet)
    second = FlashStore.open(store).manifest.calibration
    assert second.predictor_folder != first.predictor_folder
    assert second.thresholds != first.thresholds


@pytest.mark.parametrize('form', FORMS, ids=lambda form: f'{form.kind}-{form.size}')
def test_graphs_score_as_their_weights_say(int8_store: Path, tmp_path: Path,
                                           form: PredictorForm) -> None:
    """Against float64 on the stored values; ONNX Runtime rounds the inputs to 8 bits."""
    path = shutil.copytree(int8_store, tmp_path / 'one.store')
    recalibrate(path, [TEXT], tmp_path / 'work', CalibrationOptions(
        most_tokens=256, measured_tokens=0, forms=(form,)), quiet)
    store = FlashStore.open(path)
    predictors = PredictorStack(store, 1, 0.5, scores=True)
    tensors = load_file(path / store.predictor_weights)
    traces = Traces(tmp_path / 'work/results/inputs', 3, 64)
    for layer in range(3):
        x = traces.read(layer)[::13]
        z = x.astype(np.float64)
        for name in form.matrices(512, 64):
            z = z @ stored_matrix(tensors, f'predictors.{layer}.{name}', z.shape[1]).T
        gate, up = np.split(z, 2, axis=1)
        expected = np.abs(gate / (1 + np.exp(-gate)) * up)
        found = []
        for row in x:
            predictors.wanted(layer, row)
            found.append(predictors.scores.copy())
        assert np.abs(found - expected).mean() < 0.04 * expected.mean()


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


def test_the_reader_gives_the_checkpoint_back(fp16_store: Path) -> None:
    tensors = load_file(fp16_store.parent / 'checkpoint/model.safetensors')
    store = FlashStore.open(fp16_store)
    with NeuronReader(store) as reader:
        for layer in range(3):
            mlp = [tensors[f'model.layers.{layer}.mlp.{part}_proj.weight'].astype(np.float16)
                   for part in ('gate', 'up', 'down')]
            bundles = reader.bundles('gate_up', layer)
            np.testing.assert_array_equal(bundles[:, 0], mlp[0])
            np.testing.assert_array_equal(bundles[:, 1], mlp[1])
            np.testing.assert_array_equal(reader.bundles('down', layer)[:, 0], mlp[2].T)


def test_the_reader_finds_damage(store: Path) -> None:
    section = FlashStore.open(store).manifest.geometry.section('down', 1)
    size = FlashStore.open(store).manifest.geometry.group_bytes
    with (store / 'neurons.bin').open('r+b') as file:
        file.seek((section.first_group + 1) * size + 5)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    with NeuronReader(FlashStore.open(store)) as reader:
        reader.bundles('down', 0)
        with pytest.raises(ChecksumError, match=f'group {section.first_group + 1} .down of layer'):
            reader.bundles('down', 1)


def test_the_command_writes_its_own_text(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ['calibrate', str(store), '--tokens', '256', '--measured-tokens', '32']
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert 'of the groups of down columns a token' in out
    assert '256 tokens' in out and 'peak RSS' in out and 'alike' in out and '±' in out
    assert not store.with_name('.robot.store.calibration').exists()
    assert FlashStore.open(store).manifest.calibration.text_tokens == 256


def test_the_command_refuses(store: Path, tmp_path: Path,
                             capsys: pytest.CaptureFixture[str]) -> None:
    def refused(*arguments: object) -> str:
        assert main(['calibrate', str(store), *map(str, arguments)]) == 1
        return capsys.readouterr().err

    before = content(store)
    (short := tmp_path / 'short.txt').write_text('Too short.')
    assert 'calibration text' in refused('--text', short)
    assert 'most_loss' in refused('--most-loss', '1.5')
    assert 'missing.txt' in refused('--text', tmp_path / 'missing.txt')
    (broken := tmp_path / 'broken.jsonl').write_text('{"text": "fine"}\n{"text": 7}\n')
    assert 'broken.jsonl, line 2' in refused('--text', broken)
    assert 'predictor-bytes' in refused('--predictor-bytes', 'many')
    assert content(store) == before


def test_json_lines(tmp_path: Path) -> None:
    lines = ['a plain string', {'text': 'one'}, {'prompt': 'ask', 'response': 'say'},
             {'messages': [{'role': 'user', 'content': 'hi'}, {'role': 'x', 'content': 'ho'}]}]
    (tmp_path / 'a.jsonl').write_text('\n'.join(map(json.dumps, lines)) + '\n\n')
    (tmp_path / 'b.txt').write_text('all of it\n')
    assert read_texts([tmp_path / 'a.jsonl', tmp_path / 'b.txt']) == [
        'a plain string', 'one', 'ask\n\nsay', 'hi\n\nho', 'all of it\n']
