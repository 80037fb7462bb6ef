"""Forks a process for each trial, which so begins with everything imported, and watches over it.

    LD_PRELOAD=... python -m bench.faults.server LIMIT      (see processes.py)

A line of JSON on stdin is a Trial, or one whose base is to be found; on stdout comes its ending.
"""

import ctypes
from dataclasses import replace
import gc
import json
import os
from pathlib import Path
import resource
import select
import signal
import sys
import time
import traceback

from bench.faults.outcome import Ending, Outcome, Trial
from bench.faults.rows import ROWS
from flash_llm_ros.engine.memory.process_memory import peak_resident_bytes, resident_bytes
from flash_llm_ros.store.errors import FlashLlmError

SLACK = 4 << 20             # bytes beside bare process and budget, as in bench.memory.budget
_MOST_BYTES = 6 << 30       # of address space: one that runs away must not take the machine along
_POPULATE_READ = 22         # of madvise


def populate() -> None:
    """Bring the libraries' pages back, which a fork leaves behind, so that they count as bare."""
    libc = ctypes.CDLL(None)
    for line in Path('/proc/self/maps').read_text().splitlines():
        span, mode, _, _, inode, *_ = line.split()
        if inode != '0' and mode.startswith('r'):
            begin, end = (int(number, 16) for number in span.split('-'))
            libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), _POPULATE_READ)


def ending_of(trial: Trial) -> Ending:
    """Run it in this process."""
    bare = resident_bytes()
    resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        ending = ROWS[trial.row].attempt(trial)
    except FlashLlmError as error:
        return Ending(Outcome.TYPED, f'{error.code.name}: {error}')
    except BaseException:
        return Ending(Outcome.CRASH, traceback.format_exc())
    taken = peak_resident_bytes() - bare
    if ending.budget and taken > ending.budget + SLACK:
        return replace(ending, outcome=Outcome.OVER_BUDGET, detail=(
            f'{taken / 1e6:.1f} MB of {ending.budget / 1e6:.1f}; {ending.outcome.value} '
            f'{ending.detail}'))
    return ending


def child(trial: Trial, base: bool, answers: int) -> None:
    os.setsid()             # what it starts ends with it
    log = os.open(Path(trial.folder, 'log'), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        populate()
        if base:
            found = ROWS[trial.row].base(trial)
        else:
            ending = ending_of(trial)
            found = {'outcome': ending.outcome.name, 'detail': ending.detail}
        os.write(answers, json.dumps(found).encode())
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(0)


def watched(trial: Trial, base: bool, limit: float) -> dict:
    """What the child says, or how it died. A child's answer is shorter than a pipe is."""
    answers, given = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(answers)
        child(trial, base, given)
    os.close(given)
    text, deadline = b'', time.monotonic() + limit
    while True:
        ready, _, _ = select.select([answers], [], [], max(0.0, deadline - time.monotonic()))
        piece = os.read(answers, 1 << 16) if ready else b''
        text += piece
        if not piece:
            break
    os.close(answers)
    if not ready:
        os.killpg(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    if not ready:
        return {'outcome': Outcome.HANG.name, 'detail': f'not done after {limit:.0f} s'}
    if os.WIFSIGNALED(status) or not text:
        last = Path(trial.folder, 'log').read_text(errors='replace').strip()[-2000:]
        how = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else 'no answer'
        return {'outcome': Outcome.CRASH.name, 'detail': f'{how}: {last}'}
    return json.loads(text)


def main() -> None:
    limit = float(sys.argv[1])
    replies = os.fdopen(os.dup(1), 'w')
    os.dup2(2, 1)           # nothing else goes there
    gc.freeze()
    for line in sys.stdin:
        job = json.loads(line)
        base = job.pop('for_base')
        print(json.dumps(watched(Trial(**job), base, limit)), file=replies, flush=True)


if __name__ == '__main__':
    main()
