"""The managed node: wires interfaces, worker and lifecycle together."""

from importlib.metadata import version
import time
import traceback

from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.lifecycle import LifecycleNodeMixin, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter

from flash_llm_ros.engine import Engine
from flash_llm_ros.exits import EXITS
from flash_llm_ros.node.health.diagnostics import Diagnostics
from flash_llm_ros.node.health.heat import Heat
from flash_llm_ros.node.health.status import StatusReport, StatusTopic
from flash_llm_ros.node.health.watchdog import Watchdog
from flash_llm_ros.node.interfaces.action import GenerateAction
from flash_llm_ros.node.interfaces.client_watch import ClientWatch
from flash_llm_ros.node.interfaces.intake import Intake
from flash_llm_ros.node.interfaces.reset import ResetSession
from flash_llm_ros.node.interfaces.service import GenerateService
from flash_llm_ros.node.interfaces.tokenize import Tokenize
from flash_llm_ros.node.interfaces.topics import PromptTopic, SentencesTopic, StreamTopic
from flash_llm_ros.node.lifecycle_guard import LifecycleGuard
from flash_llm_ros.node.parameters import Parameters, as_declared, unknown_name
from flash_llm_ros.node.work.ledger import Ledger
from flash_llm_ros.node.work.opening import Opening
from flash_llm_ros.node.work.worker import Worker
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

SUCCESS, FAILURE = TransitionCallbackReturn.SUCCESS, TransitionCallbackReturn.FAILURE


class FlashLlmNode(LifecycleNodeMixin, Node):
    """Serves text from a flash store; every interface is there in every lifecycle state.

    A transition may take seconds. It runs in a reentrant group of its own, so that the state can
    be asked meanwhile and the monitor's timers go on.
    """

    def __init__(self) -> None:
        Node.__init__(
            self, 'flash_llm', automatically_declare_parameters_from_overrides=True)
        LifecycleNodeMixin.__init__(self, callback_group=ReentrantCallbackGroup())
        self._log = self.get_logger()
        self._worker: Worker | None = None
        self._opening: Opening | None = None
        self._is_configured = False
        self._settings = Parameters(self, lambda: self._is_configured)
        self._ledger = Ledger(self._log)
        self._guard = LifecycleGuard(self)
        self.watchdog = Watchdog(
            lambda: self._opening or self._worker,
            lambda: self._settings['health.stall_error'], self._log)

        monitor = MutuallyExclusiveCallbackGroup()
        heat = Heat()
        self._report = StatusReport(self, self._ledger, heat, self._current_worker,
                                    self.watchdog.complaint)
        self._status = StatusTopic(self, self._report, monitor)
        self._diagnostics = Diagnostics(
            self, self._settings, self._report, heat, self._ledger, self._current_worker,
            self.watchdog.complaint, monitor)

        intake = Intake(
            self._settings, StreamTopic(self, monitor), SentencesTopic(self, monitor).outlet,
            self._ledger, self._current_worker, self.report_bug)
        watch = ClientWatch(self, monitor)
        self._action = GenerateAction(self, self._settings, intake, watch)
        self._service = GenerateService(self, self._settings, intake, watch)
        self._prompt = PromptTopic(self, self._settings, intake)
        self._reset = ResetSession(self, self._current_worker)
        self._tokenize = Tokenize(self, self._current_worker)
        self._status.publish()
        self._log.info(f'flash_llm_ros {version("flash_llm_ros")} as '
                       f'{self.get_fully_qualified_name()}: unconfigured')

    def set_parameters_atomically(self, parameters: list[Parameter]) -> SetParametersResult:
        """Set parameters as rclpy does; unknown names are refused with the right one."""
        if refusals := [text for each in parameters if (text := unknown_name(each.name))]:
            return SetParametersResult(successful=False, reason=' '.join(refusals))
        return super().set_parameters_atomically(list(map(as_declared, parameters)))

    def _current_worker(self) -> Worker | None:
        return self._worker

    def report_bug(self, error: BaseException) -> None:
        """Log an exception nobody expected, with its traceback."""
        trace = ''.join(traceback.format_exception(error))
        self._log.error(f'Unexpected {type(error).__name__}; please report it.\n{trace}')

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Open the store, make the memory plan, allocate; FAILURE leaves the node unconfigured."""
        self._is_configured = True
        begin, opening = time.monotonic(), Opening()
        self._opening = opening
        try:
            with self.watchdog.ending():
                config = self._settings.engine_config()
                opening.engine = engine = Engine.open(config, self._log.info, opening.step)
                self._log.info(f'Memory plan of {engine.model_name}:\n{engine.plan.table()}')
                self._keep_system_prompt(engine)
            self._worker = Worker(engine, self._settings, self.report_bug, self._log.warning)
            self._log.info(
                f'Configured in {time.monotonic() - begin:.1f} s: {engine.model_name} of '
                f'{config.store} in {engine.plan.budget / 1e6:g} MB, {engine.mode_reason}; '
                f'reading with {engine.reader}')
        except EXITS:
            raise
        except BaseException as error:
            self._is_configured = False
            return self._failed(error)
        finally:
            self._opening = None
        return self._changed()

    def _keep_system_prompt(self, engine: Engine) -> None:
        try:
            if system_prompt := self._settings['requests.system_prompt']:
                engine.keep_system_prompt(system_prompt)
        except BaseException:
            engine.close()
            raise

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Accept requests."""
        self._report.restart_counting()
        self._worker.activate()
        self._log.info('Active: takes requests')
        return self._changed()

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Cancel what waits and what runs, accept nothing more."""
        with self.watchdog.ending():
            self._worker.deactivate('The node was deactivated.')
        self._log.info('Inactive: takes no requests')
        return self._changed()

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything."""
        return self._release('The node was cleaned up.')

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything, from whatever state."""
        return self._release('The node was shut down.')

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Free everything and start over as unconfigured."""
        return self._release('The node met an error.')

    def start_up(self) -> None:
        """Configure and activate where the parameter `autostart` says so."""
        if self._settings['autostart']:
            with self._guard.lock:
                if self.trigger_configure() == SUCCESS:
                    self.trigger_activate()

    def shut_down(self) -> None:
        """End what runs and bring the lifecycle to its end; waits for a transition under way."""
        with self._guard.lock:
            if self._guard.state != 'finalized':
                self.trigger_shutdown()

    def _release(self, reason: str) -> TransitionCallbackReturn:
        worker = self._worker
        try:
            if worker is not None:
                with self.watchdog.ending():
                    worker.deactivate(reason)
                    self._worker = None
                    worker.close(reason)
        except EXITS:
            raise
        except BaseException as error:
            self.report_bug(error)
        self._worker = None
        self._report.restart_counting()     # the next engine may have read less than this one
        self._is_configured = False
        self._log.info(reason)
        return self._changed()

    def _changed(self) -> TransitionCallbackReturn:
        self._ledger.note(None)
        self._status.publish()
        return SUCCESS

    def _failed(self, error: BaseException) -> TransitionCallbackReturn:
        if not isinstance(error, FlashLlmError):
            self.report_bug(error)
            error = FlashLlmError(
                ErrorCode.INTERNAL, f'Unexpected {type(error).__name__}: {error}')
        self._log.error(f'Not configured: {error.code.name}: {error}')
        self._ledger.note(error)
        self._status.publish()
        return FAILURE
