"""Tells an answer's text from the call behind it."""

from collections.abc import Callable, Sequence
import json
import re

from flash_llm_ros.engine.request.stop_strings import overlap
from flash_llm_ros.engine.text.call_format import ID, CallFormat, Spelling
from flash_llm_ros.engine.text.tools import Tool, ToolCall


class CallReader:
    """As StopStrings: shows text as soon as it is certain to be no part of a call."""

    met = False     # a call does not end an answer: its grammar does

    def __init__(self, form: CallFormat, tools: Sequence[Tool], call_id: str,
                 what_is_wrong: Callable[[str, str], str]) -> None:
        """`what_is_wrong` judges arguments by their schema."""
        self._spellings, self._what_is_wrong = form.spellings, what_is_wrong
        self._schemas = {tool.name: tool.schema for tool in tools}
        self._id = call_id
        self._text = ''
        self._shown = 0         # characters
        self.calls: tuple[ToolCall, ...] = ()   # once `judge` has seen them

    def feed(self, piece: str) -> str:
        """Text that can be shown now; blanks wait for what follows them."""
        self._text += piece
        return self._show(len(self._text[:self._call()[0]].rstrip()))

    def flush(self) -> str:
        """What was held back, when the answer ends."""
        return self._show(len(self._text) if self._call()[1] is None else 0)

    def judge(self, text: str) -> str:
        """What is wrong with the call of a finished answer, or ''; fills `calls`."""
        begin, spelling = self._call()
        if spelling is not None:
            head = re.compile(rf'{re.escape(spelling.begin + spelling.opening)}([\w-]+)'
                              rf'{re.escape(spelling.middle.replace(ID, self._id))}').match(
                                  self._text, begin)
            name = head[1]
            try:
                arguments, _ = spelling.arguments.read(self._text, head.end(), self._schemas[name])
            except RecursionError:
                return f'the arguments of {name}: too many values in one another'
            if reason := self._what_is_wrong(json.dumps(self._schemas[name]), arguments):
                return f'the arguments of {name}: {reason}'
            self.calls = ToolCall(self._id, name, arguments),
        return ''

    def _show(self, end: int) -> str:
        begin, self._shown = self._shown, max(self._shown, end)
        return self._text[begin:self._shown]

    def _call(self) -> tuple[int, Spelling | None]:
        """Where a call begins and how it is spelled, so far; where text ends that is certain."""
        found = [(begin, spelling) for spelling in self._spellings
                 if (begin := self._begin(spelling)) >= 0]
        if found:
            return min(found, key=lambda place: place[0])
        return len(self._text) - max(overlap(self._text, spelling.begin)
                                     for spelling in self._spellings), None

    def _begin(self, spelling: Spelling) -> int:
        if spelling.begin:
            return self._text.find(spelling.begin)
        return 0 if self._text.startswith(spelling.opening[0]) else -1
