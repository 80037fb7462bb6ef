"""The one thread that owns the engine, and the bounded queue before it. Knows no ROS."""

from collections import deque
from collections.abc import Callable
import threading

from flash_llm_ros.engine import Engine, Generation, GenerationCost
from flash_llm_ros.node.request import Request
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError


class Worker:
    """Runs one request after the other; made when the node is configured, closed at clean-up.

    The engine is closed with the worker. ``counts`` are the engine's as of its last piece, for
    other threads to read. ``report_bug`` gets exceptions nobody expected; the request then fails
    with INTERNAL and the worker goes on.
    """

    def __init__(
        self, engine: Engine, queue_size: int, report_bug: Callable[[Exception], None],
    ) -> None:
        self.engine = engine
        self._queue_size = queue_size
        self._report_bug = report_bug
        self._queue: deque[Request] = deque()
        self._changed = threading.Condition()
        self._active = False
        self._closed = False
        self._current: Request | None = None
        self._generation: Generation | None = None
        self.counts = engine.stats()
        self._thread = threading.Thread(target=self._run, name='engine', daemon=True)
        self._thread.start()

    @property
    def active(self) -> bool:
        """Whether requests are accepted."""
        return self._active

    @property
    def queue_length(self) -> int:
        """How many requests wait."""
        with self._changed:
            return sum(not request.ended for request in self._queue)

    @property
    def phase(self) -> str:
        """'prefill', 'decode', or '' when nothing runs."""
        generation = self._generation
        if generation is not None:
            return generation.phase
        return 'prefill' if self._current is not None else ''

    @property
    def cost(self) -> GenerationCost | None:
        """What the running request has cost so far."""
        generation = self._generation
        return None if generation is None else generation.stats

    def activate(self) -> None:
        """Accept requests from now on."""
        with self._changed:
            self._active = True

    def submit(self, request: Request) -> None:
        """Queue a request; raises FlashLlmError(NOT_ACTIVE or QUEUE_FULL)."""
        with self._changed:
            if not self._active:
                raise FlashLlmError(
                    ErrorCode.NOT_ACTIVE, 'The node is not active; activate it first.')
            self._queue = deque(waiting for waiting in self._queue if not waiting.ended)
            # An idle engine takes a request at once, even where nothing may wait.
            idle = self._current is None and not self._queue
            if not idle and len(self._queue) >= self._queue_size:
                raise FlashLlmError(
                    ErrorCode.QUEUE_FULL,
                    f'A request runs and {len(self._queue)} wait, which is all that `queue_size` '
                    'allows; send it again later.')
            self._queue.append(request)
            self._changed.notify_all()

    def deactivate(self, reason: str) -> None:
        """Accept nothing more, cancel what waits and what runs, return when the engine rests."""
        with self._changed:
            self._active = False
            unfinished = list(self._queue)
            self._queue.clear()
            if self._current is not None:
                unfinished.insert(0, self._current)
        # Outside the lock: the outlets of a request may ask this worker for its state.
        for request in unfinished:
            request.cancel(reason)
        with self._changed:
            self._changed.wait_for(lambda: self._current is None)

    def close(self, reason: str) -> None:
        """Deactivate, end the thread, close the engine."""
        self.deactivate(reason)
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        self.engine.close()

    def _run(self) -> None:
        while (request := self._next()) is not None:
            try:
                self._serve(request)
            finally:
                with self._changed:
                    self._generation = self._current = None
                    self._changed.notify_all()

    def _next(self) -> Request | None:
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closed)
            if not self._queue:
                return None
            self._current = self._queue.popleft()
            return self._current

    def _serve(self, request: Request) -> None:
        if not request.begin():
            return
        try:
            self._generation = generation = self.engine.start(request.generation)
            request.attach(generation)
            # Read to its end even when the request has ended early: stop() makes that short, and
            # the engine leaves its own state in order.
            for piece in generation:
                request.add(piece)
                self.counts = self.engine.stats()
            self.counts = self.engine.stats()
            request.end(generation.finish_reason)
        except FlashLlmError as error:
            request.fail(error)
        except Exception as error:
            self._report_bug(error)
            request.fail(FlashLlmError(
                ErrorCode.INTERNAL, f'Unexpected {type(error).__name__}: {error}'))
