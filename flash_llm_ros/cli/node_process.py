"""A node in a process of its own, with private parameters and domain."""

from collections.abc import Mapping, Sequence
import ctypes
import os
from pathlib import Path
import signal
import subprocess
import sys
import tempfile

import yaml

STOP_TIMEOUT = 30.0  # s
LIBC = ctypes.CDLL(None)    # looked up before the fork, when other threads may hold locks
PR_SET_PDEATHSIG = 1
COMMAND = (sys.executable, '-m', 'flash_llm_ros.node.main')


def _end_with_parent() -> None:
    # However the caller ends, no node is left behind.
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


class NodeProcess:
    """Started on creation, ended by ``stop``; a context manager. Its log goes to ``log_file``."""

    def __init__(
        self,
        parameters: Mapping[str, object],
        domain_id: int,
        *,
        command: Sequence[str] = COMMAND,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """``environment`` is added to this process's own."""
        self._folder = tempfile.TemporaryDirectory(prefix='flash_llm_')
        parameter_file = Path(self._folder.name, 'parameters.yaml')
        # A file, because on the command line a store named 1 would become a number.
        parameter_file.write_text(
            yaml.safe_dump({'/**': {'ros__parameters': dict(parameters)}}))
        self.log_file = Path(self._folder.name, 'log')
        with self.log_file.open('wb') as log:
            # In a session of its own, so that Ctrl-C reaches only the caller, who ends the node
            # in order.
            self._process = subprocess.Popen(
                [*command, '--ros-args', '--params-file', str(parameter_file)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
                start_new_session=True, preexec_fn=_end_with_parent,
                env={**os.environ, 'ROS_DOMAIN_ID': str(domain_id),
                     'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST', 'PYTHONUNBUFFERED': '1',
                     'PYTHONFAULTHANDLER': '1', **(environment or {})})
        self.pid = self._process.pid

    def __enter__(self) -> 'NodeProcess':
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def has_ended(self) -> bool:
        """Whether the process is gone."""
        return self._process.poll() is not None

    def log(self) -> str:
        """Return what the node has logged so far."""
        return self.log_file.read_text(errors='replace')

    def memory(self, field: str) -> int:
        """Return a size in bytes from /proc, such as 'VmRSS' or 'VmHWM'."""
        for line in Path(f'/proc/{self.pid}/status').read_text().splitlines():
            if line.startswith(f'{field}:'):
                return int(line.split()[1]) * 1024
        raise LookupError(f'/proc/{self.pid}/status has no {field}; the process may have ended.')

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self._process.send_signal(number)

    def wait(self, timeout: float = STOP_TIMEOUT) -> int:
        """Return the exit code; raises subprocess.TimeoutExpired."""
        return self._process.wait(timeout)

    def stop(self) -> int:
        """End the node as Ctrl-C would, with force if it does not end; returns the exit code."""
        if not self.has_ended():
            self.send_signal(signal.SIGINT)
        try:
            code = self.wait()
        except subprocess.TimeoutExpired:
            self.send_signal(signal.SIGABRT)    # makes Python log where every thread stands
            code = self.wait()
            print(self.log(), file=sys.stderr)
        self._folder.cleanup()
        return code
