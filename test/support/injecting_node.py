"""The real node with directives in prompts: '[piece=0.05]' slows every piece by that many seconds,

'[prefill=3]' only the first, '[say] A b.' has these words instead of its pieces, '[fault]' and
'[bug]' raise after the first token, '[hang]' and '[hold]' begin with a native call that does not
return, the latter with the interpreter's lock, '[reads 1+:stall100]' sets FAULTS of the preloaded
shim from then on (bench/faults/shims/reads.c); in a conversation the last message counts.
Environment variables: TEST_OPEN_SECONDS slows the opening of a store, TEST_SYSFS stands in for
/sys, TEST_OBJECTS names a file for the count of Python's objects; results are then kept for 1 s.
"""

import ctypes
import gc
import itertools
import os
from pathlib import Path
import re
import sys
import threading
import time

from flash_llm_ros.engine import Engine
from flash_llm_ros.node.health import heat
from flash_llm_ros.node.interfaces import action
from flash_llm_ros.node.main import main
from flash_llm_ros.store.errors import ReadFailedError

engine_open = Engine.open
engine_start = Engine.start


class Injected:
    """A generation that can be late or fail."""

    def __init__(self, generation, prompt):
        self._generation = generation
        self._prompt = prompt

    def __getattr__(self, name):
        return getattr(self._generation, name)

    def __iter__(self):
        time.sleep(self._seconds('prefill'))
        if '[hang]' in self._prompt:
            ctypes.CDLL(None).sleep(3600)
        if '[hold]' in self._prompt:
            ctypes.PyDLL(None).sleep(3600)
        if reads := re.search(r'\[reads (\S+)\]', self._prompt):
            os.environ['FAULTS'] = reads.group(1)
        said = re.findall(r'\s*\S+', self._prompt.partition('[say] ')[2])
        words = itertools.chain(said, itertools.repeat(''))
        for piece, word in zip(self._generation, words, strict=False):
            time.sleep(self._seconds('piece'))
            yield word if said else piece
            if '[fault]' in self._prompt:
                raise ReadFailedError('A read of 4096 bytes failed twice.')
            if '[bug]' in self._prompt:
                raise ZeroDivisionError('planted')

    def _seconds(self, name):
        found = re.search(rf'\[{name}=([0-9.]+)\]', self._prompt)
        return float(found.group(1)) if found else 0.0


def slow_open(config, *arguments):
    time.sleep(float(os.environ.get('TEST_OPEN_SECONDS', '0')))
    return engine_open(config, *arguments)


def count_objects(path):
    """Add a line there every second: how many objects Python's collector knows of."""
    while True:
        gc.collect()
        with Path(path).open('a') as counts:
            counts.write(f'{len(gc.get_objects())}\n')
        time.sleep(1)


if 'TEST_OBJECTS' in os.environ:
    action.RESULT_TIMEOUT = 1
    threading.Thread(target=count_objects, args=(os.environ['TEST_OBJECTS'],), daemon=True).start()
heat.SYS = Path(os.environ.get('TEST_SYSFS', heat.SYS))
Engine.open = slow_open
Engine.start = lambda self, request: Injected(
    engine_start(self, request), request.prompt or request.messages[-1].content)

if __name__ == '__main__':
    sys.exit(main())
