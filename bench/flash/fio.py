"""What fio reaches on a file, set up as the peer of one of our readers."""

import json
from pathlib import Path
import shutil
import subprocess

FIO = shutil.which('fio')


def fio_rate(file: Path, reader: str, size: int, depth: int, pattern: str,
             seconds: float) -> float:
    """Bytes/s of direct reads; io_uring with a queue so deep, or so many threads of preads.

    RuntimeError with what fio said when it failed.
    """
    peer = (['--ioengine=io_uring', f'--iodepth={depth}'] if reader == 'io_uring' else
            ['--ioengine=psync', f'--numjobs={depth}', '--thread', '--group_reporting',
             f'--offset_increment={file.stat().st_size // depth // size * size}'])
    done = subprocess.run(
        [FIO, '--name=reads', f'--filename={file}', '--readonly', '--direct=1',
         f'--rw={"randread" if pattern == "random" else "read"}', f'--bs={size}',
         '--norandommap', '--randrepeat=0', '--time_based', f'--runtime={seconds * 1000:.0f}ms',
         '--output-format=json', *peer],
        capture_output=True, text=True, timeout=seconds + 60, check=False)
    if done.returncode:
        raise RuntimeError(f'fio: {done.stderr.strip() or done.stdout.strip()}')
    read = json.loads(done.stdout[done.stdout.index('{'):])['jobs'][0]['read']
    return read['io_bytes'] / (read['runtime'] / 1000)
