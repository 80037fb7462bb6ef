"""~/status: flat numbers of the engine, latched for late joiners."""

from collections.abc import Callable
from dataclasses import dataclass
import time

from rclpy.callback_groups import CallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from flash_llm_msgs.msg import EngineStatus
from flash_llm_ros.client.qos import STATUS
from flash_llm_ros.engine.memory.process_memory import resident_bytes
from flash_llm_ros.node.health.heat import Heat
from flash_llm_ros.node.interfaces.conversions import error_message
from flash_llm_ros.node.work.ledger import Ledger
from flash_llm_ros.node.work.worker import Worker
from flash_llm_ros.store.errors import FlashLlmError

PERIOD = 0.5  # s
PHASES = {'': EngineStatus.IDLE, 'prefill': EngineStatus.PREFILL,
          'decode': EngineStatus.GENERATING}


@dataclass(frozen=True)
class Traffic:
    """What the engine has moved between two readings of ``Engine.stats()``."""

    flash_bytes: int = 0
    flash_reads: int = 0
    hits: int = 0
    misses: int = 0
    prefetch_used: int = 0
    active_neurons: int = 0
    total_neurons: int = 0

    @classmethod
    def since(cls, start: dict[str, int], now: dict[str, int]) -> 'Traffic':
        """Return what was added to ``start``; both come from ``Engine.stats()``."""
        return cls(**{
            name: int(now[name]) - int(start.get(name, 0)) for name in cls.__dataclass_fields__})

    @property
    def hit_rate(self) -> float:
        """Share of the groups asked for that were in the window, [0, 1]; 0 before the first."""
        return self.hits / max(self.hits + self.misses + self.prefetch_used, 1)

    @property
    def active_fraction(self) -> float:
        """Share of the FFN neurons that were used, [0, 1]; 0 before the first."""
        return self.active_neurons / max(self.total_neurons, 1)


class Throughput:
    """Bytes a second between two looks at a counter."""

    def __init__(self) -> None:
        self._before: tuple[int, float] | None = None
        self.bytes_per_second = 0.0

    def look(self, flash_bytes: int | None, now: float) -> None:
        """Take the counter at ``now``, in seconds of any clock; None: there is no engine."""
        before, self._before = self._before, None if flash_bytes is None else (flash_bytes, now)
        self.bytes_per_second = 0.0
        if before is not None and flash_bytes is not None and now > before[1]:
            self.bytes_per_second = max(flash_bytes - before[0], 0) / (now - before[1])


class StatusReport:
    """Fills EngineStatus from the worker that is there, if any."""

    def __init__(
        self,
        node: Node,
        ledger: Ledger,
        heat: Heat,
        current_worker: Callable[[], Worker | None],
        complaint: Callable[[], FlashLlmError | None],
    ) -> None:
        """``complaint``: what is wrong now, beside what has failed."""
        self._complaint = complaint
        self._node = node
        self._ledger = ledger
        self._heat = heat
        self._current_worker = current_worker
        self._throughput = Throughput()
        self._start: dict[str, int] = {}

    def restart_counting(self) -> None:
        """Count flash traffic from here on; without a worker all that the next one counts."""
        worker = self._current_worker()
        self._start = worker.counts if worker is not None else {}

    def next_period(self) -> None:
        """Measure the throughput of the flash since the call before, also within a long prompt."""
        worker = self._current_worker()
        counted = None if worker is None else worker.engine.flash_counters()['flash_bytes']
        self._throughput.look(counted, time.monotonic())

    def message(self) -> EngineStatus:
        """Return the state of now."""
        totals = self._ledger.totals
        status = EngineStatus(
            stamp=self._node.get_clock().now().to_msg(),
            state=EngineStatus.UNCONFIGURED,
            requests_done=totals.requests_done,
            requests_failed=totals.requests_failed,
            requests_cancelled=totals.requests_cancelled,
            preemptions=totals.preemptions,
            tokens_generated=totals.tokens_generated,
            rss=resident_bytes(),
            temperature=self._heat.temperature,
            flash_bytes_per_second=self._throughput.bytes_per_second,
            error=error_message(self._complaint() or totals.last_error))
        worker = self._current_worker()
        if worker is not None:
            self._add_engine(status, worker)
        cost = (worker and worker.cost) or totals.last_cost
        if cost is not None:
            status.tokens_per_second = float(cost.tokens_per_second)
            status.time_to_first_token = float(cost.time_to_first_token)
        return status

    def traffic(self) -> Traffic:
        """Since activation."""
        worker = self._current_worker()
        return Traffic() if worker is None else Traffic.since(self._start, worker.counts)

    def _add_engine(self, status: EngineStatus, worker: Worker) -> None:
        engine = worker.engine
        plan = engine.plan
        traffic = self.traffic()
        status.state = PHASES[worker.phase] if worker.active else EngineStatus.INACTIVE
        status.model = engine.model_name
        status.mode = engine.mode
        status.sessions = engine.sessions
        status.queue_length = worker.queue_length
        status.duty_cycle = worker.duty_cycle
        status.threads = engine.threads
        status.model_bytes = engine.model_bytes
        status.dram_budget = plan.budget
        status.dram_planned = plan.planned
        status.window_bytes = plan.window_bytes
        status.flash_bytes = traffic.flash_bytes
        status.flash_reads = traffic.flash_reads
        status.window_hits = traffic.hits
        status.window_misses = traffic.misses
        status.hit_rate = traffic.hit_rate
        status.active_fraction = traffic.active_fraction


class StatusTopic:
    """Publishes twice a second, and at once when the node has changed its state.

    Twice a second of a steady clock: that of the node may be a simulation's, and stand still.
    """

    def __init__(
        self, node: Node, report: StatusReport, callback_group: CallbackGroup,
    ) -> None:
        self._report = report
        self._publisher = node.create_publisher(
            EngineStatus, '~/status', STATUS, callback_group=callback_group)
        node.create_timer(PERIOD, self._tick, callback_group=callback_group,
                          clock=Clock(clock_type=ClockType.STEADY_TIME))

    def publish(self) -> None:
        """Publish the state of now."""
        self._publisher.publish(self._report.message())

    def _tick(self) -> None:
        self._report.next_period()
        self.publish()
