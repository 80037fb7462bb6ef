"""/diagnostics at 1 Hz after REP 107: the engine's health and its memory plan."""

from collections.abc import Callable

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node
from rclpy.qos import QoSProfile

from flash_llm_msgs.msg import EngineError, EngineStatus
from flash_llm_ros.node.ledger import FAULTS, Ledger
from flash_llm_ros.node.status import StatusReport
from flash_llm_ros.node.worker import Worker

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
        report: StatusReport,
        ledger: Ledger,
        current_worker: Callable[[], Worker | None],
        callback_group: CallbackGroup,
    ) -> None:
        self._node = node
        self._report = report
        self._ledger = ledger
        self._current_worker = current_worker
        self._publisher = node.create_publisher(
            DiagnosticArray, '/diagnostics', QoSProfile(depth=10), callback_group=callback_group)
        node.create_timer(PERIOD, self.publish, callback_group=callback_group)

    def publish(self) -> None:
        """Publish the health of now."""
        array = DiagnosticArray(status=[self._engine(), self._memory_plan()])
        array.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(array)

    def _engine(self) -> DiagnosticStatus:
        status = self._report.message()
        level, text = self._health(status)
        worker = self._current_worker()
        values = {
            'state': STATE_NAMES[status.state],
            'model': status.model,
            'mode': status.mode,
            'reader': worker.engine.reader if worker else '',
            'requests done': status.requests_done,
            'requests failed': status.requests_failed,
            'faults': self._ledger.totals.faults,
            'requests waiting': status.queue_length,
            'tokens generated': status.tokens_generated,
            'tokens per second': f'{status.tokens_per_second:.2f}',
            'time to first token (s)': f'{status.time_to_first_token:.3f}',
            'read from flash (B)': status.flash_bytes,
            'reads from flash': status.flash_reads,
            'window hits': status.window_hits,
            'window misses': status.window_misses,
            'window hit rate': f'{status.hit_rate:.4f}',
            'neurons left out in time': status.neurons_left_out,
            'token deadlines missed': status.deadlines_missed,
            'resident set (B)': status.rss,
        }
        return self._status('engine', level, text, values)

    def _health(self, status: EngineStatus) -> tuple[bytes, str]:
        error = status.error
        state = STATE_NAMES[status.state]
        if error.code == EngineError.NONE:
            return DiagnosticStatus.OK, state
        sentence = f'{state}; {error.message}'
        return DiagnosticStatus.ERROR if error.code in FAULTS else DiagnosticStatus.WARN, sentence

    def _memory_plan(self) -> DiagnosticStatus:
        worker = self._current_worker()
        if worker is None:
            return self._status('memory plan', DiagnosticStatus.OK, 'not configured', {})
        plan = worker.engine.plan
        values = {row.name: f'{row.bytes} B; {row.note}' for row in plan.rows}
        values |= {'planned': f'{plan.planned} B', 'budget': f'{plan.budget} B',
                   'model on flash': f'{worker.engine.model_bytes} B'}
        text = f'{plan.planned} of {plan.budget} B planned'
        return self._status('memory plan', DiagnosticStatus.OK, text, values)

    def _status(
        self, part: str, level: bytes, text: str, values: dict[str, object],
    ) -> DiagnosticStatus:
        return DiagnosticStatus(
            level=level,
            name=f'{self._node.get_name()}: {part}',
            message=text,
            hardware_id=self._node.get_fully_qualified_name(),
            values=[KeyValue(key=key, value=str(value)) for key, value in values.items()])
