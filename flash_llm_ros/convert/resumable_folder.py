"""A folder of intermediate results, so that work that was interrupted goes on where it was."""

from collections.abc import Callable
from contextlib import suppress
import json
import os
from pathlib import Path
import shutil
from typing import Any

import numpy as np
from numpy.typing import NDArray

_KEY = 'made_from.json'


def remove_parts(folder: Path, names: tuple[str, ...]) -> None:
    """Remove these folders of `folder`, and itself unless it holds other things of the user's."""
    for name in names:
        shutil.rmtree(folder / name, ignore_errors=True)
    with suppress(OSError):
        folder.rmdir()


class ResumableFolder:
    """Results made from `key`; a folder that was made from something else starts empty."""

    def __init__(self, path: Path, key: dict[str, Any]) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        text = json.dumps(key, indent=1, sort_keys=True)
        file = path / _KEY
        if not file.is_file() or file.read_text() != text:
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir(parents=True)
            file.write_text(text)

    def arrays(self, name: str, make: Callable[[], dict[str, NDArray[Any]]]
               ) -> dict[str, NDArray[Any]]:
        """What `make` returns; kept as a file, which later calls return in its place."""
        file = self.path / f'{name}.npz'
        if not file.is_file():
            partial = file.with_suffix('.partial')
            with partial.open('wb') as target:
                np.savez(target, **make())
            os.replace(partial, file)
        with np.load(file) as data:
            return dict(data)

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
