"""One request from its arrival to its one outcome, whoever ends it. Knows no ROS."""

from collections.abc import Callable, Sequence
import copy
from dataclasses import dataclass
from enum import Enum, auto
import threading
import time

from flash_llm_ros.engine import (
    FinishReason,
    Generation,
    GenerationCost,
    GenerationRequest,
    ToolCall,
)
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

DEFAULT_PRIORITY = 100  # of the messages, too


@dataclass(frozen=True)
class Chunk:
    """A piece of an answer; only the last one of a request has another reason than RUNNING."""

    request_id: str
    sequence: int
    text: str
    finish_reason: FinishReason
    error: FlashLlmError | None = None
    tool_calls: tuple[ToolCall, ...] = ()       # in the last one


@dataclass(frozen=True)
class Outcome:
    """How a request ended; times in seconds from its arrival, ``queue_time`` to its start."""

    request_id: str
    text: str
    finish_reason: FinishReason
    error: FlashLlmError | None
    cost: GenerationCost | None
    queue_time: float
    total_time: float = 0.0
    preemptions: int = 0
    tool_calls: tuple[ToolCall, ...] = ()


class Outlet:
    """Who is told about a request. Called in order, from any thread; must not block.

    Here nothing is done with what is told.
    """

    def started(self) -> None:
        """Tell that the engine works on it; left out for requests that end in the queue."""

    def chunk(self, chunk: Chunk) -> None:
        """Take the next piece of text."""

    def done(self, outcome: Outcome) -> None:
        """Take the outcome; nothing follows."""


class _State(Enum):
    WAITING = auto()
    RUNNING = auto()
    ENDED = auto()


class Request:
    """Counts its chunks, coalesces their text and ends exactly once.

    Ends by the engine's last piece, an error, a cancel or its deadline, whichever comes first; a
    cancel or a deadline takes effect at once, even while the engine is still inside a long piece.
    """

    def __init__(
        self,
        request_id: str,
        generation: GenerationRequest | None,
        outlets: Sequence[Outlet],
        *,
        priority: int = DEFAULT_PRIORITY,
        deadline: float = 0.0,
        stream_period: float = 0.05,
        on_outlet_failure: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        """``deadline`` in seconds from now, 0 for none; ``stream_period`` in seconds."""
        self.id = request_id
        self.generation = generation
        self.priority = priority
        self.preemptions = 0
        self._outlets = tuple(outlets)
        self._deadline = deadline
        self._stream_period = stream_period
        self._on_outlet_failure = on_outlet_failure
        # Re-entrant and held while outlets are told, so that no chunk overtakes another.
        self._lock = threading.RLock()
        self._state = _State.WAITING
        self._running: Generation | None = None
        self._texts: list[str] = []
        self._pending = ''
        self._sequence = 0
        self._last_chunk = float('-inf')
        self._arrival = time.monotonic()
        self._queue_time = 0.0
        self._wake: Callable[[], None] = lambda: None
        self._timer = threading.Timer(deadline, self._expire) if deadline > 0 else None
        if self._timer is not None:
            self._timer.daemon = True
            self._timer.start()

    @property
    def ended(self) -> bool:
        """Whether the outcome is out."""
        return self._state is _State.ENDED

    def watch(self, wake: Callable[[], None]) -> None:
        """Have ``wake`` called once it has ended, in whatever thread ends it."""
        self._wake = wake

    def begin(self) -> bool:
        """Say that the engine takes it; False where it has ended in the queue."""
        with self._lock:
            if self.ended:
                return False
            self._state = _State.RUNNING
            self._queue_time = time.monotonic() - self._arrival
            self._tell('started')
            return True

    def attach(self, running: Generation) -> None:
        """Take the engine's generation, to be stopped when the request ends early."""
        with self._lock:
            self._running = running
            if self.ended:
                running.stop(FinishReason.CANCELLED)

    def add(self, text: str) -> None:
        """Take a piece of the answer; it goes out now or with a later chunk."""
        with self._lock:
            if self.ended or not text:
                return
            self._texts.append(text)
            self._pending += text
            if time.monotonic() - self._last_chunk >= self._stream_period:
                self._send(FinishReason.RUNNING)

    def cancel(self, message: str) -> None:
        """End it because nobody wants it any more."""
        self.end(FinishReason.CANCELLED, FlashLlmError(ErrorCode.CANCELLED, message))

    def replace(self) -> None:
        """End it because a newer request takes its place."""
        self.end(FinishReason.CANCELLED, FlashLlmError(
            ErrorCode.REPLACED, 'A newer request took its place, as `requests.when_busy` says.'))

    def abandon(self) -> None:
        """End it because whoever asked has left."""
        self.end(FinishReason.CANCELLED, FlashLlmError(
            ErrorCode.CLIENT_GONE, 'Whoever asked has left the ROS graph.'))

    def fail(self, error: FlashLlmError) -> None:
        """End it with an error."""
        self.end(FinishReason.ERROR, error)

    def end(self, reason: FinishReason, error: FlashLlmError | None = None,
            tool_calls: tuple[ToolCall, ...] = ()) -> None:
        """Send the last chunk and the outcome; only the first call does anything."""
        with self._lock:
            if self.ended:
                return
            if self._state is _State.WAITING:
                self._queue_time = time.monotonic() - self._arrival
            self._state = _State.ENDED
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if error is not None:       # it is kept: the frames it came through hold the message
                error.__traceback__ = error.__context__ = None
            cost = None
            if self._running is not None:
                cost = copy.copy(self._running.stats)  # the engine goes on writing to it
                if reason in (FinishReason.CANCELLED, FinishReason.DEADLINE):
                    self._running.stop(reason)
            self._send(reason, error, tool_calls)
            self._tell('done', Outcome(
                self.id, ''.join(self._texts), reason, error, cost, self._queue_time,
                time.monotonic() - self._arrival, self.preemptions, tool_calls))
            # Outlets know their request: without this both, and the message, would wait for
            # Python's cycle collector.
            self._outlets = ()
            self._wake()

    def _expire(self) -> None:
        with self._lock:
            error = None
            if not self._texts:
                error = FlashLlmError(
                    ErrorCode.DEADLINE,
                    f'The deadline of {self._deadline:g} s passed before the first token.')
            elif self.generation.constraint is not None:
                error = FlashLlmError(
                    ErrorCode.CONSTRAINT_UNMET,
                    f'The deadline of {self._deadline:g} s passed before the answer was complete, '
                    'so that it need not be what its constraint asks for.')
            self.end(FinishReason.DEADLINE, error)

    def _send(self, reason: FinishReason, error: FlashLlmError | None = None,
              tool_calls: tuple[ToolCall, ...] = ()) -> None:
        chunk = Chunk(self.id, self._sequence, self._pending, reason, error, tool_calls)
        self._pending = ''
        self._sequence += 1
        self._last_chunk = time.monotonic()
        self._tell('chunk', chunk)

    def _tell(self, event: str, *arguments: Chunk | Outcome) -> None:
        for outlet in self._outlets:
            try:
                getattr(outlet, event)(*arguments)
            except Exception as error:  # an outlet that fails must not take the others with it
                self._on_outlet_failure(error)
