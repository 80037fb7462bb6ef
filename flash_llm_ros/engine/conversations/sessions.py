"""Conversations whose keys and values are kept: one in the KV cache, the others on flash."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
import threading

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.engine.conversations.kv_snapshot import KvSnapshot
from flash_llm_ros.engine.model.model import Model
from flash_llm_ros.engine.plan import Part, PlanRow
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

_SESSION_BYTES = 4096       # of a conversation that is kept, beside its tokens


class SessionsPart(Part):
    """Sessions in the memory plan: their tokens; keys and values lie on flash."""

    def __init__(self, most: int, context: int) -> None:
        self._most, self._context = most, context

    def buffers(self) -> list[PlanRow]:
        if not self._most:
            return []
        return [PlanRow('sessions', self._most * (4 * self._context + _SESSION_BYTES),
                        'their tokens; keys and values lie on flash')]


@dataclass(eq=False)
class Session:
    """A conversation between its requests. What is under way does not show before it has ended."""

    system_prompt: str
    tools: bytes = b''                      # their digest
    tokens: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    turns: tuple[int, ...] = ()             # where in them those begin that are not the first
    rows: int = 0                           # of its tokens, whose keys and values are kept
    snapshot: KvSnapshot | None = None      # where, unless they are in the KV cache
    busy: bool = False                      # a request is under way
    forgotten: bool = False                 # reset meanwhile: nothing is kept any more


class Sessions:
    """At most `most` of them; the one that was used longest ago gives way to a new one.

    `reset` and the length may be asked for from any thread, all else from the engine's.
    """

    def __init__(self, most: int, folder: Path, model: Model, log: Callable[[str], None]) -> None:
        self._most, self._folder, self._model, self._log = most, folder, model, log
        self._by_name: dict[str, Session] = {}      # the one used last at the end
        self._present: Session | None = None        # whose rows are in the KV cache
        self._lock = threading.RLock()

    def __len__(self) -> int:
        return len(self._by_name)

    def find(self, name: str) -> Session | None:
        """A session that a request can go on with; raises FlashLlmError(TOO_MANY_SESSIONS)."""
        with self._lock:
            session = self._by_name.get(name)
            if session is not None and session.busy:
                raise FlashLlmError(ErrorCode.TOO_MANY_SESSIONS,
                                    f'session {name!r} has a request under way; a conversation '
                                    'takes one turn after the other.')
            return session

    def begin(self, name: str, found: Session | None, system_prompt: str,
              tools: bytes) -> Session:
        """Give the session that was found, or else a new one, to a request.

        Raises FlashLlmError(TOO_MANY_SESSIONS).
        """
        with self._lock:
            if found is None:
                if len(self._by_name) >= self._most:
                    self._forget_oldest()
                found = Session(system_prompt, tools)
            if not found.forgotten:
                self._by_name.pop(name, None)
                self._by_name[name] = found
            found.busy = True
            return found

    def load(self, session: Session | None) -> int:
        """Make the KV cache a session's, or nobody's; how many of its rows are there then."""
        with self._lock:
            present, self._present = self._present, session
            if present is not None and present is not session:
                self._put_away(present)
            if session is None:
                return 0
            if present is not session:
                self._bring_back(session)
            self._check_reach(session)
            return session.rows

    def leave(self) -> None:
        """What is in the KV cache has been kept otherwise."""
        with self._lock:
            self._present = None

    def enter(self, session: Session | None) -> None:
        """What is in the KV cache now is this session's."""
        with self._lock:
            self._present = session

    def compute_anew(self, session: Session) -> None:
        """No row of it is of use to the turn that it is given to now."""
        with self._lock:
            session.rows = 0
            if session.snapshot is not None:
                session.snapshot.close()
                session.snapshot = None

    def keep(self, session: Session, tokens: list[int], turns: tuple[int, ...], rows: int) -> None:
        """A turn has come to its end: the session has these tokens, the first rows in the cache."""
        with self._lock:
            session.busy = False
            if not session.forgotten:
                session.tokens, session.turns = np.array(tokens, np.int32), turns
                session.rows = rows

    def abandon(self, session: Session, snapshot: KvSnapshot | None = None) -> None:
        """A turn has not come to its end: the session is as it was before.

        `snapshot` holds its rows, and more, where they are not in the KV cache any more.
        """
        with self._lock:
            session.busy = False
            if not len(session.tokens):
                self._by_name = {name: other for name, other in self._by_name.items()
                                 if other is not session}
                session.forgotten = True
            if session.forgotten or session is self._present or snapshot is None:
                if snapshot is not None:
                    snapshot.close()
                if session is not self._present:
                    session.rows = 0
            else:
                session.snapshot = snapshot

    def reset(self, name: str) -> int:
        """Forget a session, or all of them for ''; raises FlashLlmError(NO_SUCH_SESSION)."""
        with self._lock:
            if name and name not in self._by_name:
                raise FlashLlmError(ErrorCode.NO_SUCH_SESSION,
                                    f'There is no session {name!r}; it was never begun, was reset '
                                    'or had to give way to another one.')
            names = [name] if name else list(self._by_name)
            for each in names:
                self._forget(each)
            return len(names)

    def _forget_oldest(self) -> None:
        idle = next((name for name, other in self._by_name.items() if not other.busy), None)
        if idle is None:
            raise FlashLlmError(
                ErrorCode.TOO_MANY_SESSIONS,
                f'max_sessions is {self._most}, and '
                + ('no sessions are kept.' if not self._most else
                   'each of them has a request under way; send it again later.'))
        self._log(f'session {idle!r} gives way to another one')
        self._forget(idle)

    def _forget(self, name: str) -> None:
        session = self._by_name.pop(name)
        session.forgotten, session.rows = True, 0
        if session.snapshot is not None:
            session.snapshot.close()
            session.snapshot = None

    def _check_reach(self, session: Session) -> None:
        """A turn that came to no end may have taken the place of what the session goes on from."""
        session.rows = self._model.reach(session.rows)

    def _put_away(self, session: Session) -> None:
        self._check_reach(session)
        if session.rows:
            try:
                session.snapshot = KvSnapshot(self._folder, self._model, session.rows)
            except FlashLlmError as error:
                self._lost(session, error)

    def _bring_back(self, session: Session) -> None:
        snapshot, session.snapshot = session.snapshot, None
        if snapshot is not None:
            try:
                snapshot.restore(self._model)
            except FlashLlmError as error:
                self._lost(session, error)
            finally:
                snapshot.close()

    def _lost(self, session: Session, error: FlashLlmError) -> None:
        """The conversation stays: its tokens are computed anew when it goes on."""
        session.rows = 0
        self._log(f'{error} The conversation will be computed anew.')
