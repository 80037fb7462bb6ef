"""What became of the requests: counted for ~/status and /diagnostics, told to the log."""

from dataclasses import dataclass, replace
import threading

from rclpy.impl.rcutils_logger import RcutilsLogger

from flash_llm_ros.engine import FinishReason, GenerationCost
from flash_llm_ros.node.work.request import Outcome, Outlet
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

# The store, its budget or the engine is at fault, not who asked.
FAULTS = frozenset((
    ErrorCode.STORE_NOT_FOUND, ErrorCode.STORE_INCOMPLETE, ErrorCode.STORE_CORRUPT,
    ErrorCode.STORE_VERSION, ErrorCode.BUDGET_TOO_SMALL, ErrorCode.INVALID_PARAMETER,
    ErrorCode.READ_FAILED, ErrorCode.CHECKSUM_MISMATCH, ErrorCode.INTERNAL))


@dataclass(frozen=True)
class Totals:
    """Since the node started."""

    requests_done: int = 0
    requests_failed: int = 0
    requests_cancelled: int = 0
    preemptions: int = 0
    tokens_generated: int = 0
    faults: int = 0
    last_cost: GenerationCost | None = None
    last_error: FlashLlmError | None = None     # None after a success
    fault: FlashLlmError | None = None          # the latest, until an answer or a transition


class Ledger:
    """Adds up outcomes; also keeps why the last transition failed, as ``last_error``."""

    def __init__(self, logger: RcutilsLogger) -> None:
        self._logger = logger
        self._lock = threading.Lock()
        self._totals = Totals()

    @property
    def totals(self) -> Totals:
        """What there is now; never changes under the reader."""
        return self._totals

    def watch(self) -> '_Entry':
        """Return the outlet that enters one request."""
        return _Entry(self)

    def note(self, error: FlashLlmError | None) -> None:
        """Keep how a transition ended."""
        with self._lock:
            self._totals = replace(self._totals, last_error=error, fault=error)

    def enter(self, outcome: Outcome) -> None:
        """Count an outcome and log it."""
        failed = outcome.finish_reason == FinishReason.ERROR
        cancelled = outcome.finish_reason == FinishReason.CANCELLED
        done = not failed and not cancelled
        fault = failed and outcome.error.code in FAULTS
        cost = outcome.cost
        with self._lock:
            totals = self._totals
            self._totals = Totals(
                totals.requests_done + done,
                totals.requests_failed + failed,
                totals.requests_cancelled + cancelled,
                totals.preemptions + outcome.preemptions,
                totals.tokens_generated + (cost.generated_tokens if cost else 0),
                totals.faults + fault,
                cost or totals.last_cost,
                outcome.error if failed else None,
                outcome.error if fault else None if done else totals.fault)
        self._log(outcome, failed, fault)

    def _log(self, outcome: Outcome, failed: bool, fault: bool) -> None:
        reason = outcome.finish_reason.name
        sentence = '' if outcome.error is None else f' ({outcome.error.code.name}: {outcome.error})'
        cost = '' if outcome.cost is None else (
            f', {outcome.cost.prompt_tokens} + {outcome.cost.generated_tokens} tokens')
        text = (f'Request {outcome.request_id}: {reason}{sentence}{cost} in '
                f'{outcome.total_time:.2f} s, {outcome.queue_time:.2f} s of them waiting')
        if fault:
            self._logger.error(text)
        elif failed:
            self._logger.warning(text)
        elif outcome.error is not None and outcome.error.code == ErrorCode.CLIENT_GONE:
            self._logger.info(text)
        else:
            self._logger.debug(text)


class _Entry(Outlet):
    """The outlet of one request."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def done(self, outcome: Outcome) -> None:
        """Enter the outcome."""
        self._ledger.enter(outcome)
