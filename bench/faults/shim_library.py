"""What is preloaded in front of libc, so that its calls fail as told."""

from pathlib import Path
import subprocess

SHIMS = Path(__file__).with_name('shims')


def build_shims(folder: Path, sources: str = '*.c') -> Path:
    """The library of these of shims/; RuntimeError without a C compiler."""
    library = folder / 'shims.so'
    try:
        done = subprocess.run(['cc', '-shared', '-fPIC', '-O1', '-o', str(library),
                               *map(str, sorted(SHIMS.glob(sources))), '-ldl'],
                              capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise RuntimeError('cc is missing; the faults need a C compiler') from None
    if done.returncode:
        raise RuntimeError(f'the shims cannot be compiled: {done.stderr}')
    return library
