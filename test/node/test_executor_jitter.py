"""A timer in the node's own process goes on while the node reads a prompt and generates."""

import pytest

from bench.node.executor_jitter import ticks_by_phase

pytestmark = [pytest.mark.ros, pytest.mark.timeout(400)]


def test_a_timer_of_the_node_goes_on(real_store):
    """Compared with the same timer in a process that has nothing else to do, so that a busy machine
    does not count. Blocked by the engine, it would tick once a pass: 3 to 20 times a second of 100.
    """
    found = ticks_by_phase(real_store, 2.0, 1, rounds=1)
    for phase in ('prefill', 'decode'):
        node, control = found[phase]['node'], found[phase]['control']
        assert control['ticks'] > 20
        assert node['ticks'] / node['expected'] > 0.4 * control['ticks'] / control['expected']
