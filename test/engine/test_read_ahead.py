"""`read_ahead`: layers of a ReLU model are foreseen from the one before; the text is the same."""

from pathlib import Path

from core_cases import needs_uring
from planted_checkpoint import write_planted_checkpoint
import pytest

from flash_llm_ros.convert.conversion import ConversionOptions, convert
from flash_llm_ros.engine import Engine, EngineConfig, GenerationRequest

BUDGET = 20_000_000


@pytest.fixture(scope='module')
def relu_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp('planted')
    checkpoint = write_planted_checkpoint(folder / 'checkpoint')
    convert(checkpoint, folder / 'planted.store', ConversionOptions(neurons='int8'),
            lambda what, done, total: None)
    return folder / 'planted.store'


class CountingCore:
    """Stands before a core and notes each prefetch: section, needed or not, which neurons."""

    def __init__(self, core):
        self._core, self.calls, self.used = core, [], []

    def __getattr__(self, name):
        return getattr(self._core, name)

    def prefetch(self, section, wanted, needed=False):
        self.calls.append((section, needed, wanted.copy()))
        self._core.prefetch(section, wanted, needed)

    def bundled_sparse(self, section, x, active, *others):
        self.used.append((section, active.copy()))
        self._core.bundled_sparse(section, x, active, *others)


def answer(store, **options):
    """Tokens of an answer, what the core counted, and the core that noted its calls."""
    engine = Engine.open(EngineConfig(store, BUDGET, 'sparse', lock_memory=False, **options))
    try:
        core = engine.model.window.core = CountingCore(engine.model.window.core)
        generation = engine.start(GenerationRequest('Where is the drone?', raw=True,
                                                    max_tokens=24))
        for _ in generation:
            pass
        return generation.tokens, engine.stats(), core
    finally:
        engine.close()


@pytest.mark.parametrize('options', [
    pytest.param({'core': 'numpy'}, id='numpy'),
    pytest.param({'reader': 'threads'}, id='threads'),
    pytest.param({'reader': 'io_uring', 'reads_in_flight': 2}, id='io_uring',
                 marks=needs_uring),
])
def test_the_same_text_and_the_layers_ahead(relu_store, options):
    off, before, core = answer(relu_store, **options)
    assert (before['prefetched'], core.calls) == (0, [])
    on, counted, core = answer(relu_store, read_ahead=True, **options)
    assert on == off
    assert 0 < counted['prefetch_used'] <= counted['prefetched'] < 2 * counted['prefetch_used']
    assert counted['misses'] + counted['prefetch_used'] == before['misses']
    bundles = sorted({section for section, _ in core.used})
    assert len(bundles) > 1
    own = {section: [] for section in bundles}
    ahead = {section: [] for section in bundles}
    for section, needed, wanted in core.calls:
        (own if needed else ahead)[section].append(wanted)
    uses = {section: [active for used, active in core.used if used == section]
            for section in bundles}
    # Each layer but the last asks for what it uses itself, then for what the next one may use.
    assert ahead[bundles[0]] == []
    assert own[bundles[-1]] == []
    for layer, section in enumerate(bundles[:-1]):
        assert [bits.tolist() for bits in own[section]] == [
            bits.tolist() for bits in uses[section]]
        assert len(ahead[bundles[layer + 1]]) == len(uses[section])
    foreseen = sum(int((early & active).sum()) for section in bundles[1:]
                   for early, active in zip(ahead[section], uses[section], strict=True))
    assert foreseen > 0.5 * sum(int(active.sum()) for section in bundles[1:]
                                for active in uses[section])


def test_a_deadline_leaves_the_foreseen_to_the_next_layer(relu_store):
    """With all the time there is, a deadline leaves nothing out, and the text is the same."""
    off, _, _ = answer(relu_store, token_deadline_ms=100_000)
    on, counted, core = answer(relu_store, token_deadline_ms=100_000, read_ahead=True)
    assert on == off
    assert any(not needed for _, needed, _ in core.calls)
    assert counted['left_out'] == 0
