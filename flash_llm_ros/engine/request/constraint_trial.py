"""Tries constraints in a process of their own before the engine takes them.

llguidance's limits do not hold for all of its work: thousands of rules that call each other
overflow its stack, which ends the process, and some intersections of regular expressions it
examines for ever. That has to cost the constraint, not the node.
"""

from collections import OrderedDict
import hashlib
import json
from pathlib import Path
import signal
import subprocess
import sys
from types import ModuleType

from flash_llm_ros.engine.request import constraint_grammar
from flash_llm_ros.engine.request.constraint import Constraint, ConstraintKind
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

TRIAL_BYTES = 14_000_000    # of the process, beside what the constraint takes
_MOST_SECONDS = 2           # of the processor
_PATIENCE = 60.0            # s, for a processor that others use, and flash that reads slowly
_MOST_KNOWN = 256


class ConstraintTrial:
    """Remembers what became of the latest constraints, so that each is tried once."""

    def __init__(self, library: ModuleType, most_bytes: int) -> None:
        """`library`: llguidance; `most_bytes`: what a constraint may take."""
        script = str(Path(constraint_grammar.__file__))
        folder = str(Path(library.__file__).parents[1])
        # Isolated and without `site`, which takes longer to start than all the rest.
        self._command = [sys.executable, '-I', '-S', script, folder, str(most_bytes),
                         str(_MOST_SECONDS)]
        self._too_much = (f'it takes more than {_MOST_SECONDS} s or {most_bytes / 1e6:.0f} MB to '
                          'prepare; make it simpler')
        self._known: OrderedDict[bytes, str] = OrderedDict()

    def why_not(self, constraint: Constraint) -> str:
        """Why it is refused, or ''; takes 0.1 s where it is new, 2 s of the processor at most.

        Raises FlashLlmError(INTERNAL) where the system gives no process.
        """
        message = json.dumps([ConstraintKind(constraint.kind).name, constraint.text,
                              constraint.choices]).encode()
        key = hashlib.sha256(message).digest()
        if key in self._known:
            self._known.move_to_end(key)
        else:
            self._known[key] = self._outcome(message)
            if len(self._known) > _MOST_KNOWN:
                self._known.popitem(last=False)
        return self._known[key]

    def _outcome(self, message: bytes) -> str:
        try:
            done = subprocess.run(self._command, input=message, capture_output=True,
                                  timeout=_PATIENCE, start_new_session=True, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise FlashLlmError(ErrorCode.INTERNAL, 'The constraint could not be tried in a '
                                f'process of its own: {error}.') from None
        if done.returncode == 0:
            return json.loads(done.stdout)
        if -done.returncode == signal.SIGSEGV:
            return 'its parts are nested too deeply'
        return self._too_much
