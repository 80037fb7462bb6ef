"""Native calls that do not return: they are told, and end with the process when it is to end."""

from pathlib import Path
import signal
from types import SimpleNamespace

import pytest
from ros_fixtures import running_node
from test_node_health import expect_level
from test_node_requests import goal

from flash_llm_ros.engine import Engine, EngineConfig
from flash_llm_ros.store.errors import ErrorCode
from flash_llm_ros.store.flash_store import NEURONS, FlashStore

BOUND = 3.0     # s, of `health.stall_error` here
TOLD = 3.0      # s, more than it is told for before the process ends


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Log:
    def __init__(self) -> None:
        self.errors, self.last_words = [], []
        self.error, self.fatal = self.errors.append, self.last_words.append


@pytest.fixture
def watched() -> SimpleNamespace:
    """A watchdog over a worker whose progress the test makes, by a clock of the test's own."""
    from flash_llm_ros.node.health.watchdog import Watchdog

    found = SimpleNamespace(clock=Clock(), log=Log(), worker=SimpleNamespace(progress=None),
                            exits=[])
    found.dog = Watchdog(lambda: found.worker, lambda: 10.0, found.log, found.clock,
                         found.exits.append)

    def look(seconds: float, progress: tuple[int, ...] | None) -> None:
        found.clock.now += seconds
        found.worker.progress = progress
        found.dog.look()
    found.look = look
    return found


@pytest.mark.ros
def test_work_that_goes_on_is_no_stall_and_idleness_is_none(watched: SimpleNamespace) -> None:
    for count in range(5):
        watched.look(9.0, (count,))
        assert watched.dog.complaint() is None
    watched.look(1000.0, None)
    watched.look(1000.0, None)
    assert watched.dog.complaint() is None and not watched.log.errors and not watched.exits


@pytest.mark.ros
def test_a_stall_is_told_once_and_is_over_when_work_goes_on(watched: SimpleNamespace) -> None:
    watched.look(0.0, (1,))
    for _ in range(4):
        watched.look(5.0, (1,))
    assert watched.dog.complaint().code is ErrorCode.INTERNAL
    assert len(watched.log.errors) == 1 and '10 s' in watched.log.errors[0]
    assert not watched.exits            # nobody wants it to end
    watched.look(5.0, (2,))
    assert watched.dog.complaint() is None


@pytest.mark.ros
def test_an_end_waits_for_work_that_goes_on_and_not_for_what_stalls(
        watched: SimpleNamespace) -> None:
    watched.look(0.0, (1,))
    with watched.dog.ending():
        for count in range(5):          # one long pass over a slow card
            watched.look(9.0, (2 + count,))
        assert not watched.exits
        watched.look(10.0, (6,))
        assert watched.dog.complaint() is not None and not watched.exits
        watched.look(TOLD, (6,))
    assert watched.exits == [70] and '70' in watched.log.last_words[0]


@pytest.mark.ros
def test_an_end_that_waits_for_something_else_is_bounded_too(watched: SimpleNamespace) -> None:
    """Such as opening a store, or a thread that is not the engine's."""
    watched.look(500.0, None)
    with watched.dog.ending():
        watched.look(9.0, None)
        assert not watched.exits
        watched.look(1.0 + TOLD, None)
    assert watched.exits == [70]


def test_every_piece_of_a_store_is_progress(int8_store: Path) -> None:
    """Else a large one on a slow card would pass for one that stands still."""
    seen = []
    engine = Engine.open(EngineConfig(int8_store, 60_000_000), progress=lambda: seen.append(1))
    engine.close()
    manifest = FlashStore.open(int8_store).manifest
    assert len(seen) > len(manifest.files.keys() - {NEURONS}) + manifest.model.layers


@pytest.mark.ros
@pytest.mark.parametrize('end', ['deactivate', 'interrupt'])
def test_a_call_that_does_not_return(int8_store, end) -> None:
    from diagnostic_msgs.msg import DiagnosticStatus

    with running_node(int8_store, stall_error=BOUND, ends_with=70) as node:
        client = node.activate().client
        client.send_goal(goal('[hang]', 8))
        expect_level(client, 'engine', DiagnosticStatus.ERROR, 'no progress')
        client.until(lambda: client.status.error.code == ErrorCode.INTERNAL, 10, '~/status')
        if end == 'deactivate':
            with pytest.raises(ConnectionError):
                client.transition('deactivate')
        else:
            node.process.send_signal(signal.SIGINT)
        assert node.process.wait(20) == 70
        assert '[FATAL]' in node.process.log()


@pytest.mark.ros
def test_a_call_that_keeps_the_interpreter(int8_store) -> None:
    """No line of Python runs any more, that of the watchdog included."""
    with running_node(int8_store, stall_error=1.0, ends_with=1) as node:
        node.activate().client.send_goal(goal('[hold]', 8))
        assert node.process.wait(30) == 1
        assert 'Timeout' in node.process.log()      # and where every thread stood
