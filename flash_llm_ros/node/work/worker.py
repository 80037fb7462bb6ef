"""The one thread that owns the engine. Knows no ROS."""

from collections.abc import Callable
import threading
from typing import Any, Protocol

from flash_llm_ros.engine import Engine, FinishReason, GenerationCost
from flash_llm_ros.exits import EXITS
from flash_llm_ros.node.work.pace import Pace
from flash_llm_ros.node.work.request import Request
from flash_llm_ros.node.work.scheduler import Job, Scheduler
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

LONGEST_NAP = 0.5  # s, after which a resting engine looks whether it still has to


class Settings(Protocol):
    """The parameters of the groups `requests` and `compute`, as they are now."""

    def __getitem__(self, name: str) -> Any: ...


class Worker:
    """Gives the engine to one request at a time, the highest priority first.

    Made when the node is configured, closed at clean-up, and the engine with it. Between two
    pieces of an answer the engine may rest, and what runs may have to stand back. ``counts`` are
    the engine's as of its last piece, for other threads to read. ``report_bug`` gets exceptions
    nobody expected; the request then fails with INTERNAL and the worker goes on.
    """

    def __init__(
        self, engine: Engine, settings: Settings, report_bug: Callable[[BaseException], None],
        warn: Callable[[str], None] = lambda sentence: None,
    ) -> None:
        self.engine = engine
        self._settings = settings
        self._report_bug = report_bug
        self._warn = warn
        self._scheduler = Scheduler()
        self._pace = Pace()
        self._unpaid_work = 0.0     # s, that the present request need not rest for
        self._changed = threading.Condition()
        self._active = False
        self._closed = False
        self._current: Job | None = None
        self._steps = 0
        self.counts = engine.stats()
        self._thread = threading.Thread(target=self._run, name='engine', daemon=True)
        self._thread.start()

    @property
    def active(self) -> bool:
        """Whether requests are accepted."""
        return self._active

    @property
    def queue_length(self) -> int:
        """How many requests wait, those that were set aside included."""
        with self._changed:
            return sum(not request.ended for request in self._scheduler.requests())

    @property
    def progress(self) -> tuple[int, ...] | None:
        """Changes with everything that is done for a request; None where there is none."""
        if self._current is None:
            return None
        # A clock also goes on where a read never ends.
        return self._steps, *(count for name, count in self.engine.flash_counters().items()
                              if not name.endswith('_ns'))

    @property
    def phase(self) -> str:
        """'prefill', 'decode', or '' when nothing runs."""
        job = self._current
        if job is None:
            return ''
        return 'prefill' if job.generation is None else job.generation.phase

    @property
    def cost(self) -> GenerationCost | None:
        """What the running request has cost so far."""
        job = self._current
        return None if job is None or job.generation is None else job.generation.stats

    @property
    def duty_cycle(self) -> float:
        """Share of the time in which the engine may work."""
        return self._settings['compute.duty_cycle']

    def activate(self) -> None:
        """Accept requests from now on."""
        with self._changed:
            self._active = True

    def submit(self, request: Request) -> None:
        """Queue a request; raises FlashLlmError: NOT_ACTIVE, QUEUE_FULL, and as Engine.check.

        What waits is so no larger than the context, times `requests.queue_size`.
        """
        if self._active:
            self.engine.check(request.generation)
        with self._changed:
            if not self._active:
                raise FlashLlmError(
                    ErrorCode.NOT_ACTIVE, 'The node is not active; activate it first.')
            replaced = self._scheduler.admit(
                request, self._current, self._settings['requests.queue_size'],
                self._settings['requests.when_busy'])
            request.watch(self._wake)
            self._changed.notify_all()
        # Outside the lock: the outlets of a request may ask this worker for its state.
        for older in replaced:
            older.replace()

    def deactivate(self, reason: str) -> None:
        """Accept nothing more, cancel what waits and what runs, return when the engine rests."""
        with self._changed:
            self._active = False
            unfinished = self._scheduler.requests()
            if self._current is not None:
                unfinished.insert(0, self._current.request)
        for request in unfinished:
            request.cancel(reason)
        with self._changed:
            self._changed.wait_for(lambda: self._current is None and not self._scheduler.set_aside)

    def close(self, reason: str) -> None:
        """Deactivate, end the thread, close the engine."""
        self.deactivate(reason)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self.engine.close()

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            try:
                self._serve(job)
            finally:
                with self._changed:
                    self._current = None
                    self._changed.notify_all()

    def _next(self) -> Job | None:
        with self._changed:
            while True:
                self._changed.wait_for(lambda: len(self._scheduler) or self._closed)
                self._current = self._scheduler.take()
                self._steps += 1
                if self._current is not None or self._closed:
                    return self._current

    def _serve(self, job: Job) -> None:
        request = job.request
        try:
            if self._begin(job):
                self._go_on(job)
        except FlashLlmError as error:
            request.fail(error)
        except EXITS:
            raise
        except BaseException as error:
            self._report_bug(error)
            request.fail(FlashLlmError(
                ErrorCode.INTERNAL, f'Unexpected {type(error).__name__}: {error}'))

    def _begin(self, job: Job) -> bool:
        """Give the engine to a request; False where it has ended, or has to wait on."""
        request = job.request
        if job.suspended is not None or not self._scheduler.set_aside:
            self._unpaid_work = job.unpaid_work
        self._rest(job)
        with self._changed:
            if self._scheduler.must_stand_back(job):
                self._put_back(job)
                return False
        if job.suspended is not None:
            return self._bring_back(job)
        if not request.begin():
            return False
        job.generation = self.engine.start(request.generation)
        request.attach(job.generation)
        job.pieces = iter(job.generation)
        return True

    def _bring_back(self, job: Job) -> bool:
        if job.request.ended:
            self._clear_up(job)
            return False
        suspended, job.suspended = job.suspended, None
        self.engine.resume(suspended)
        return True

    def _go_on(self, job: Job) -> None:
        """Answer until the end, or until the request has to stand back."""
        while (piece := self._work(job)) is not None:
            job.request.add(piece)
            if job.generation.finish_reason != FinishReason.RUNNING:
                continue        # that was the last one: nobody is to wait for its end
            self._rest(job)
            with self._changed:
                ended = self._scheduler.take_ended()
                must_stand_back = self._scheduler.must_stand_back(job)
            for other in ended:
                self._clear_up(other)
            if must_stand_back and not job.request.ended and self._set_aside(job):
                return
        # Read to its end even when the request has ended early: stop() makes that short, and the
        # engine leaves its own state in order.
        job.request.end(job.generation.finish_reason, tool_calls=job.generation.tool_calls)

    def _work(self, job: Job) -> str | None:
        """Return the next piece, None behind the last one."""
        duty_cycle = self._settings['compute.duty_cycle']
        self.engine.limit_threads(self._settings['compute.max_threads'])
        self._pace.work(duty_cycle)
        try:
            return next(job.pieces, None)
        finally:
            self._pace.rest(duty_cycle)
            self._steps += 1
            self.counts = self.engine.stats()

    def _rest(self, job: Job) -> None:
        """Wait as long as the duty cycle asks for, unless the engine is wanted for something."""
        with self._changed:
            while not job.request.ended and not self._scheduler.must_stand_back(job):
                owed = self._pace.owed(self._settings['compute.duty_cycle'], self._unpaid_work)
                if owed <= 0:
                    return
                self._changed.wait(min(owed, LONGEST_NAP))
                self._steps += 1

    def _set_aside(self, job: Job) -> bool:
        try:
            job.suspended = self.engine.suspend()
        except FlashLlmError as error:
            job.stands_back = False
            self._warn(f'Request {job.request.id} goes on although one of a higher priority '
                       f'waits: {error}')
            return False
        job.request.preemptions += 1
        with self._changed:
            self._put_back(job)
        return True

    def _put_back(self, job: Job) -> None:
        """Let it wait for who pushes in, and who need not rest for what was done before."""
        job.unpaid_work, self._unpaid_work = self._unpaid_work, self._pace.unpaid
        self._scheduler.put_back(job)

    def _clear_up(self, job: Job) -> None:
        """Forget what a request has that ended while it was set aside; that fails nobody else."""
        try:
            self.engine.discard(job.suspended)
            job.pieces.close()
        except EXITS:
            raise
        except BaseException as error:
            self._report_bug(error)
