"""What the loss meter says, against the engine's own answers in float64."""

from collections.abc import Iterator
from pathlib import Path

from generation_cases import opened
import numpy as np
import pytest

from flash_llm_ros.convert.measured_loss import LossMeter, ThresholdedFeedForward
from flash_llm_ros.convert.samples import Samples
from flash_llm_ros.convert.traces import Traces
from flash_llm_ros.engine import Engine

TEXT = 'The robot turns left at the door, waits for the lift and then goes on to room 12. ' * 6


@pytest.fixture(scope='module')
def engine(int8_store: Path) -> Iterator[Engine]:
    engine = opened(int8_store, 'native')
    yield engine
    engine.close()


@pytest.fixture(scope='module')
def piece(engine: Engine) -> np.ndarray:
    tokens = np.array(engine.tokenize(TEXT)[:150], np.int64)
    assert len(tokens) > 2 * engine.model.chunk     # several chunks, the last not full
    return tokens


def log_probabilities(engine: Engine, piece: np.ndarray,
                      thresholds: np.ndarray | None) -> np.ndarray:
    """float64, token by token."""
    model, plain = engine.model, engine.model.feed_forward
    if thresholds is not None:
        model.feed_forward = ThresholdedFeedForward(plain, engine)
        model.feed_forward.use(thresholds)
    rows = np.empty((len(piece), model.spec.embedding.vocab_size), np.float32)
    try:
        for position in range(len(piece)):
            model.forward(piece[position:position + 1], position, dense=True,
                          logits=rows[position:position + 1])
    finally:
        model.feed_forward = plain
    wide = rows.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


def divergences(exact: np.ndarray, ours: np.ndarray) -> np.ndarray:
    return (np.exp(exact) * (exact - ours)).sum(axis=1)


def test_losses_and_divergences_are_those_of_the_answers(engine: Engine,
                                                         piece: np.ndarray) -> None:
    limits = np.full(engine.model.spec.layers, 0.05)
    exact, ours = (log_probabilities(engine, piece, one) for one in (None, limits))
    meter = LossMeter(engine, [piece])
    answers = meter.exact(piece)
    found = meter.compared(piece, answers, limits)
    following = (np.arange(len(piece) - 1), piece[1:])
    np.testing.assert_allclose(answers.losses, -exact[:-1][following], atol=0.05)
    np.testing.assert_allclose(found['losses'], -ours[:-1][following], atol=0.05)
    assert found['divergences'].mean() == pytest.approx(divergences(exact, ours).mean(), rel=0.05)
    assert found['divergences'].mean() > 1e-3
    assert 0.05 < meter.left_out < 0.95
    np.testing.assert_array_equal(meter.losses(limits), found['losses'])


def test_a_layer_alone_costs_what_it_costs_when_all_is_computed_again(
        engine: Engine, piece: np.ndarray) -> None:
    layers = engine.model.spec.layers
    limits = np.linspace(0.02, 0.05, layers)
    meter, steps = LossMeter(engine, [piece]), []
    found = meter.sensitivities(piece, limits, steps.append)
    assert found.shape == (layers, len(piece)) and steps == list(range(1, layers + 1))
    exact = meter.exact(piece)
    for layer in range(layers):
        alone = np.where(np.arange(layers) == layer, limits, -1.0)
        again = meter.compared(piece, exact, alone)['divergences']
        np.testing.assert_allclose(found[layer], again, rtol=1e-5, atol=1e-9)
        assert again.mean() > 1e-6


@pytest.mark.parametrize(('tokens', 'most'), [(8192, 1024), (8192, 200), (2048, 4096), (64, 64)])
def test_text_to_measure_on_is_of_several_places(tmp_path: Path, tokens: int, most: int) -> None:
    samples = Samples(Traces(tmp_path, 1, 4), np.arange(tokens), 512)
    learned, held_out = samples.train_pieces(most), samples.held_out_pieces(most)
    for pieces, share in ((learned, 0.75), (held_out, 0.25)):
        count = sum(map(len, pieces))
        assert min(most, share * tokens) * 0.9 <= count <= most
        assert len(pieces) >= min(4, share * tokens // samples.piece)
        assert all(2 <= len(piece) <= 512 and (np.diff(piece) == 1).all() for piece in pieces)
    assert not set(np.concatenate(learned)) & set(np.concatenate(held_out))
