"""Answers: those that are here, those on their way, and those that will never be."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
import threading

from rclpy.task import Future

from flash_llm_msgs.action import GenerateText
from flash_llm_msgs.msg import ChatMessage, GenerationStats, TokenChunk, ToolCall
from flash_llm_ros.finish_reason import FinishReason
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

POLL = 0.2  # s between two looks whether waiting still makes sense


@dataclass(frozen=True)
class Answer:
    """What came back; ``str(answer)`` is its text."""

    text: str
    finish_reason: FinishReason
    stats: GenerationStats = field(default_factory=GenerationStats)     # what it cost
    node: str = ''      # full name of who answered; empty where nobody was asked
    tool_calls: tuple[ToolCall, ...] = ()   # what the model asks for

    @property
    def message(self) -> ChatMessage:
        """The answer as a turn of the conversation that goes on."""
        return ChatMessage(role='assistant', content=self.text, tool_calls=list(self.tool_calls))

    def __str__(self) -> str:
        return self.text


class AnswerError(FlashLlmError):
    """The node ended the request with an error; ``code`` says which, ``answer`` has what came."""

    def __init__(self, code: ErrorCode, message: str, answer: Answer) -> None:
        super().__init__(code, message)
        self.answer = answer


class NodeLostError(ConnectionError):
    """The node was not found, or has left before it answered."""


class PendingAnswer:
    """An answer on its way. Iterate over it for its text piece by piece, or ask for ``result()``.

    ``future`` ends with the Answer or the error: ``await`` it in a coroutine of the node, or hand
    it to ``rclpy.spin_until_future_complete``.
    """

    def __init__(
        self,
        may_wait: Callable[[], None],
        ask_to_cancel: Callable[['PendingAnswer'], None],
        log_failure: Callable[[str, Exception], None],
        on_text: Callable[[str], None] | None,
        on_done: Callable[['PendingAnswer'], None] | None,
    ) -> None:
        """Made by a client. ``may_wait`` raises where waiting would never end.

        ``log_failure`` is told of a callback that raised, and what.
        """
        self.future = Future()
        self.cancel_wanted = False
        self._may_wait = may_wait
        self._ask_to_cancel = ask_to_cancel
        self._log_failure = log_failure
        self._on_text = on_text
        self._on_done = on_done
        self._changed = threading.Condition()
        # One caller of the callbacks at a time: feedback and result may come in two threads. A
        # callback may end its own request, by closing the client.
        self._telling = threading.RLock()
        self._pieces: list[str] = []
        self._next = 0
        self._outcome: Answer | Exception | None = None

    @property
    def done(self) -> bool:
        """Whether the answer or an error is here."""
        return self._outcome is not None

    def cancel(self) -> None:
        """Ask the node to stop; returns at once. The result then is the text so far, CANCELLED."""
        if not self.done:
            self.cancel_wanted = True
            self._ask_to_cancel(self)

    def result(self, timeout: float | None = None) -> Answer:
        """Wait for the whole answer; ``timeout`` in seconds, None: as long as the node lives.

        Raises AnswerError, NodeLostError, TimeoutError (the request goes on), what ``on_text``
        raised, and RuntimeError where the wait would keep the answer from coming.
        """
        if not self._wait(lambda: self.done, timeout):
            raise TimeoutError(f'No answer within {timeout:g} s.')
        if isinstance(self._outcome, Exception):
            raise self._outcome
        return self._outcome

    def until_left(self) -> Iterator[str]:
        """The text as it comes; whoever leaves the loop early cancels the request."""
        try:
            yield from self
        finally:
            self.cancel()

    def __iter__(self) -> Iterator[str]:
        """Yield the text as it comes; at its end raise what ``result`` would."""
        index = 0
        while True:
            self._wait(lambda shown=index: self.done or len(self._pieces) > shown, None)
            if index == len(self._pieces):
                self.result()
                return
            yield self._pieces[index]
            index += 1

    def _wait(self, condition: Callable[[], bool], timeout: float | None) -> bool:
        left = timeout
        with self._changed:
            while not condition():
                if left is not None and left <= 0:
                    return False
                self._may_wait()
                step = POLL if left is None else min(POLL, left)
                self._changed.wait(step)
                if left is not None:
                    left -= step
        return True

    # What follows is the client's side, called in the order in which things arrive.

    def take(self, chunk: TokenChunk) -> None:
        """Take a chunk; one after a gap waits for the result, which has all of the text."""
        with self._telling:
            if chunk.sequence != self._next or self.done:
                return
            self._next += 1
            self._add(chunk.text)

    def add(self, text: str) -> None:
        """Take a piece of the text."""
        with self._telling:
            if not self.done:
                self._add(text)

    def finish(self, result: GenerateText.Result, node: str) -> None:
        """Take the result of a node. Its text may be here before the last chunks are."""
        answer = Answer(result.text, FinishReason(result.finish_reason), result.stats, node,
                        tuple(result.tool_calls))
        code = result.error.code
        wanted = code == ErrorCode.NONE or (
            self.cancel_wanted and answer.finish_reason == FinishReason.CANCELLED)
        self.complete(answer, None if wanted else AnswerError(
            ErrorCode(code), result.error.message, answer))

    def complete(self, answer: Answer, error: Exception | None = None) -> None:
        """Show what is missing of an answer's text and end with it, or with an error."""
        with self._telling:
            if not self.done:
                self._add(answer.text[sum(map(len, self._pieces)):])
                self._end(error or answer)

    def cancel_unsent(self) -> None:
        """End it before the node has heard of it."""
        with self._telling:
            self._end(Answer(''.join(self._pieces), FinishReason.CANCELLED))

    def lose(self, message: str) -> None:
        """End it because nothing will come any more."""
        self.fail(NodeLostError(message))

    def fail(self, error: Exception) -> None:
        """End it with an error."""
        with self._telling:
            self._end(error)

    def _add(self, text: str) -> None:
        if not text:
            return
        with self._changed:
            self._pieces.append(text)
            self._changed.notify_all()
        if self._on_text is not None and not self.done:
            try:
                self._on_text(text)
            except Exception as error:
                self._log_failure('on_text', error)
                self.cancel()
                self._end(error)

    def _end(self, outcome: Answer | Exception) -> None:
        if self.done:
            return
        with self._changed:
            self._outcome = outcome
            self._changed.notify_all()
        if isinstance(outcome, Exception):
            self.future.set_exception(outcome)
            self.future.exception()     # who uses `result` never looks: rclpy would print it
        else:
            self.future.set_result(outcome)
        if self._on_done is not None:
            try:
                self._on_done(self)
            except Exception as error:
                self._log_failure('on_done', error)
