"""The process that trials are forked from, with the shims in front of its libraries."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
import json
import os
from pathlib import Path
import subprocess
import sys
import tempfile

from bench.faults.outcome import Ending, Outcome, Trial
from bench.faults.rows import ROWS
from bench.faults.shim_library import build_shims
from bench.support.worker import ROOT


class Processes:
    """Runs trials one after the other."""

    def __init__(self, stores: Path, shims: Path, limit: float) -> None:
        """`limit`: seconds after which a trial counts as hanging."""
        self._stores, self._bases = stores, {}
        self._server = subprocess.Popen(
            [sys.executable, '-m', 'bench.faults.server', str(limit)], cwd=ROOT, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            env={**os.environ, 'LD_PRELOAD': str(shims), 'OPENBLAS_NUM_THREADS': '1',
                 'RUST_BACKTRACE': '0'})

    def attempt(self, name: str, seed: int, stall_scale: float = 1.0) -> Ending:
        """How this trial of this row ends; what it is compared with is found once."""
        row = ROWS[name]
        key = row.base_of, row.base_key(row.case(seed))
        trial = Trial(name, seed, {}, '', str(self._stores), stall_scale)
        if key not in self._bases:
            found = self._ask(trial, for_base=True)
            if 'outcome' in found:
                raise RuntimeError(f'{name} fails without a fault: {found["detail"]}')
            self._bases[key] = found
        found = self._ask(replace(trial, base=self._bases[key]), for_base=False)
        return Ending(Outcome[found['outcome']], found['detail'])

    def close(self) -> None:
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()

    def _ask(self, trial: Trial, for_base: bool) -> dict:
        with tempfile.TemporaryDirectory(prefix='flash_llm_fault_', dir=self._stores) as folder:
            line = json.dumps({**asdict(replace(trial, folder=folder)), 'for_base': for_base})
            self._server.stdin.write(f'{line}\n')
            self._server.stdin.flush()
            answer = self._server.stdout.readline()
        if not answer:
            raise RuntimeError(f'the process of the trials ended at {trial.row} {trial.seed}')
        return json.loads(answer)


@contextmanager
def processes(stores: Path, limit: float) -> Iterator[Processes]:
    with tempfile.TemporaryDirectory() as folder:
        found = Processes(stores, build_shims(Path(folder)), limit)
        try:
            yield found
        finally:
            found.close()
