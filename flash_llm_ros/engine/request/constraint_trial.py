"""Tries constraints, and validates answers, in a process of its own.

llguidance's limits do not hold for all of its work: thousands of rules that call each other
overflow its stack, which ends the process, and some intersections of regular expressions it
examines for ever. So may a validator examine an answer. That has to cost the constraint, not the
node.
"""

from collections import OrderedDict
import hashlib
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
from typing import NamedTuple

from flash_llm_ros.engine.request import constraint_helper
from flash_llm_ros.engine.request.constraint import Constraint, ConstraintKind
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

TRIAL_BYTES = 14_000_000    # of the process, beside what the constraint takes
_MOST_SECONDS = 2           # of the processor
_PATIENCE = 60.0            # s, for a processor that others use, and flash that reads slowly
_MOST_KNOWN = 256
_MOST_CHARACTERS = 1_000_000    # of the grammars that are remembered


class Outcome(NamedTuple):
    """Of a trial."""

    reason: str = ''        # why not
    grammar: str = ''       # what a JSON schema or a grammar has become


class ConstraintTrial:
    """Remembers what became of the latest constraints, so that each is tried once."""

    def __init__(self, most_bytes: int) -> None:
        """`most_bytes`: what a constraint may take."""
        script = str(Path(constraint_helper.__file__))
        path = os.pathsep.join(entry for entry in sys.path if os.path.isabs(entry))
        # Isolated and without `site`, which takes longer to start than all the rest.
        self._command = [sys.executable, '-I', '-S', script, str(most_bytes),
                         str(_MOST_SECONDS), path]
        self._too_much = (f'it takes more than {_MOST_SECONDS} s or {most_bytes / 1e6:.0f} MB to '
                          'prepare; make it simpler')
        self._known: OrderedDict[bytes, Outcome] = OrderedDict()

    def outcome(self, constraint: Constraint) -> Outcome:
        """Takes 0.1 s where it is new, 2 s of the processor at most.

        Raises FlashLlmError(INTERNAL) where the system gives no process.
        """
        message = json.dumps([ConstraintKind(constraint.kind).name, constraint.text,
                              constraint.choices]).encode()
        key = hashlib.sha256(message).digest()
        if key in self._known:
            self._known.move_to_end(key)
        else:
            self._known[key] = self._run(message)
            while len(self._known) > 1 and (
                    len(self._known) > _MOST_KNOWN
                    or sum(len(known.grammar) for known in self._known.values())
                    > _MOST_CHARACTERS):
                self._known.popitem(last=False)
        return self._known[key]

    def what_is_wrong(self, schema: str, answer: str) -> str:
        """Why the answer does not validate against the schema, or ''.

        Takes 0.1 s; raises FlashLlmError(INTERNAL) where the system gives no process.
        """
        return self._run(json.dumps(['ANSWER', schema, answer]).encode()).reason

    def _run(self, message: bytes) -> Outcome:
        try:
            done = subprocess.run(self._command, input=message, capture_output=True,
                                  timeout=_PATIENCE, start_new_session=True, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise FlashLlmError(ErrorCode.INTERNAL, 'The constraint could not be tried in a '
                                f'process of its own: {error}.') from None
        if done.returncode == 0:
            return Outcome(*json.loads(done.stdout))
        if -done.returncode == signal.SIGSEGV:
            return Outcome('its parts are nested too deeply')
        return Outcome(self._too_much)
