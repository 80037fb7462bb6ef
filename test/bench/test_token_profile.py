"""The profile of a token: parts that are all of it, and none twice."""

from argparse import Namespace
import time

import pytest

from bench.model.token_profile import Stopwatches, measure, middle, parts_of, profile
from flash_llm_ros.engine import Engine, EngineConfig

BUDGET = 150_000_000


def test_inner_calls_are_taken_off_outer_ones():
    watches = Stopwatches()
    inner = watches.timed('inner', lambda: time.sleep(0.02))

    def work() -> str:
        inner()
        inner()
        return 'done'

    assert watches.timed('outer', work)() == 'done'
    assert watches.calls == {'inner': 2, 'outer': 1}
    assert watches.seconds['inner'] >= 0.04 > watches.seconds['outer']


def test_a_call_that_fails_is_timed_as_well():
    watches = Stopwatches()
    with pytest.raises(ZeroDivisionError):
        watches.timed('outer', watches.timed('inner', lambda: 1 / 0))()
    assert watches.calls == {'inner': 1, 'outer': 1}


def test_medians_are_taken_value_by_value():
    assert middle([{'a': 1, 'b': 6}, {'a': 3, 'b': 5}, {'a': 2, 'b': 4}]) == {'a': 2, 'b': 5}


@pytest.mark.parametrize(('mode', 'core'), [('exact', 'native'), ('sparse', 'native'),
                                            ('exact', 'numpy')])
def test_the_parts_of_a_token_add_up_to_it(int8_store, mode, core):
    engine = Engine.open(EngineConfig(int8_store, BUDGET, mode, core=core, lock_memory=False,
                                      down_reads='scattered'))
    try:
        plain = profile(engine, 6, watched=False)
        original = engine.model.window.core
        records = profile(engine, 6, watched=True)
        assert engine.model.window.core is original
    finally:
        engine.close()
    assert len(plain) == len(records) == 5
    assert not any(name.startswith('core.') for name in plain[0])
    for record in records:
        parts = parts_of(record)
        total = parts.pop('total')
        assert sum(parts.values()) == pytest.approx(total)
        assert all(value >= 0 for name, value in parts.items()), parts
        assert {'attention', 'final norm', 'sampler', 'text of the token', 'waiting for reads',
                'finding slots', 'kernels', 'Python'} <= parts.keys()
        assert ('predictors' in parts) == (mode == 'sparse')
    if mode == 'sparse':
        assert records[0]['core.add_rows_sparse'] > 0


def test_what_is_reported_beside_the_parts(int8_store):
    options = Namespace(store=int8_store, mode='exact', sparsity=None, share=None, tokens=4)
    found = measure(options, BUDGET, 2)
    assert found['threads'] == 2 and found['layers'] == 3
    assert found['calls']['core.gate_up'] > 0 and found['unwatched'] > 0
