"""/diagnostics at 1 Hz after REP 107: the health of the node's parts and its memory plan."""

from collections.abc import Callable

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.callback_groups import CallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from rclpy.qos import QoSProfile

from flash_llm_msgs.msg import EngineStatus
from flash_llm_ros.engine.byte_size import parse_byte_size
from flash_llm_ros.engine.memory.process_memory import resident_bytes
from flash_llm_ros.node.health import Health, Level
from flash_llm_ros.node.health.flash import FlashHealth
from flash_llm_ros.node.health.heat import Heat
from flash_llm_ros.node.health.memory import memory_health, swapped_bytes
from flash_llm_ros.node.health.namesakes import Namesakes
from flash_llm_ros.node.health.qos import communication_health
from flash_llm_ros.node.health.status import StatusReport
from flash_llm_ros.node.parameters import Parameters
from flash_llm_ros.node.work.ledger import Ledger
from flash_llm_ros.node.work.worker import Worker
from flash_llm_ros.store.device_profile import usable_profile
from flash_llm_ros.store.errors import FlashLlmError

PERIOD = 1.0  # s
STATE_NAMES = {
    EngineStatus.UNCONFIGURED: 'unconfigured', EngineStatus.INACTIVE: 'inactive',
    EngineStatus.IDLE: 'idle', EngineStatus.PREFILL: 'reading a prompt',
    EngineStatus.GENERATING: 'generating',
}


class Diagnostics:
    """Runs in a callback group of its own: health must be heard during a long prefill too."""

    def __init__(
        self,
        node: Node,
        parameters: Parameters,
        report: StatusReport,
        heat: Heat,
        ledger: Ledger,
        current_worker: Callable[[], Worker | None],
        complaint: Callable[[], FlashLlmError | None],
        callback_group: CallbackGroup,
    ) -> None:
        """``complaint``: what is wrong now, beside what has failed."""
        self._node = node
        self._complaint = complaint
        self._parameters = parameters
        self._report = report
        self._heat = heat
        self._ledger = ledger
        self._current_worker = current_worker
        self._namesakes = Namesakes(node)
        self._bare = resident_bytes()
        self._judged: tuple[Worker, FlashHealth] | None = None
        self._publisher = node.create_publisher(
            DiagnosticArray, '/diagnostics', QoSProfile(depth=10), callback_group=callback_group)
        node.create_timer(PERIOD, self.publish, callback_group=callback_group,
                          clock=Clock(clock_type=ClockType.STEADY_TIME))

    def publish(self) -> None:
        """Publish the health of now."""
        self._heat.look()
        limits = self._parameters
        parts = {
            'engine': self._engine(),
            'memory plan': self._memory_plan(),
            'memory': self._memory(),
            'flash': self._flash(),
            'heat': self._heat.health(limits['health.temperature_warning'],
                                      limits['health.temperature_error']),
            'communication': communication_health(self._node, self._namesakes.findings()),
        }
        array = DiagnosticArray(status=[
            self._status(part, health) for part, health in parts.items()])
        array.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(array)

    def _engine(self) -> Health:
        status = self._report.message()
        level, text = self._health(status)
        error = self._ledger.totals.last_error
        worker = self._current_worker()
        return Health(level, text, {
            'state': STATE_NAMES[status.state],
            'model': status.model,
            'mode': status.mode,
            'reader': worker.engine.reader if worker else '',
            'requests done': status.requests_done,
            'requests failed': status.requests_failed,
            'faults': self._ledger.totals.faults,
            'last error': f'{error.code.name}: {error}' if error else '',
            'requests waiting': status.queue_length,
            'tokens generated': status.tokens_generated,
            'tokens per second': f'{status.tokens_per_second:.2f}',
            'time to first token (s)': f'{status.time_to_first_token:.3f}',
            'read from flash (B)': status.flash_bytes,
            'reads from flash': status.flash_reads,
            'window hits': status.window_hits,
            'window misses': status.window_misses,
            'window groups foreseen': self._report.traffic().prefetch_used,
            'window hit rate': f'{status.hit_rate:.4f}',
            'resident set (B)': status.rss,
        })

    def _health(self, status: EngineStatus) -> tuple[Level, str]:
        """A request that makes no sense, or comes too often, says nothing of the engine."""
        state = STATE_NAMES[status.state]
        fault = self._complaint() or self._ledger.totals.fault
        return (Level.ERROR, f'{state}; {fault}') if fault else (Level.OK, state)

    def _memory_plan(self) -> Health:
        worker = self._current_worker()
        if worker is None:
            return Health(Level.OK, 'not configured')
        plan = worker.engine.plan
        values = {row.name: f'{row.bytes} B; {row.note}' for row in plan.rows}
        values |= {'planned': f'{plan.planned} B', 'budget': f'{plan.budget} B',
                   'model on flash': f'{worker.engine.model_bytes} B'}
        return Health(Level.OK, f'{plan.planned} of {plan.budget} B planned', values)

    def _memory(self) -> Health:
        worker = self._current_worker()
        if worker is None:
            return Health(Level.OK, 'not configured')
        plan = worker.engine.plan
        tolerance = parse_byte_size(
            'health.memory_tolerance', self._parameters['health.memory_tolerance'])
        return memory_health(resident_bytes(), self._bare, plan.planned, plan.budget, tolerance,
                             swapped_bytes())

    def _flash(self) -> Health:
        worker = self._current_worker()
        if worker is None:
            return Health(Level.OK, 'not configured')
        counters = worker.engine.flash_counters()
        if self._judged is None or self._judged[0] is not worker:
            profile, _ = usable_profile(worker.engine.config.store)
            self._judged = worker, FlashHealth(profile, counters)
        health = self._judged[1]
        health.look(counters)
        return health.health(self._parameters['health.flash_slowdown_warning'])

    def _status(self, part: str, health: Health) -> DiagnosticStatus:
        return DiagnosticStatus(
            level=bytes([health.level]),
            name=f'{self._node.get_fully_qualified_name()}: {part}',
            message=health.text,
            hardware_id=self._node.get_fully_qualified_name(),
            values=[KeyValue(key=key, value=str(value)) for key, value in health.values.items()])
