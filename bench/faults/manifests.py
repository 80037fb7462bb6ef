"""Rows: what a manifest or a device profile says is another, and the manifest sealed again."""

from collections.abc import Iterator
import copy
import hashlib
from pathlib import Path
import random
from typing import Any

import yaml

from bench.faults.damage import copied_store
from bench.faults.engine_trial import attempt, base_of
from bench.faults.outcome import Ending, Trial
from bench.faults.row import Row

# What the author of a store may choose: other numbers of the same kind are no damage.
CHOSEN = ('calibration.thresholds', 'calibration.perplexity_ratio',
          'calibration.perplexity_error')
VALUES: tuple[Any, ...] = (
    None, True, '', 'x', [], {}, [[]], -1, 0, 1, 2, 512, 2 ** 31, 2 ** 63, 10 ** 30, -10 ** 30, 0.5,
    1e-300, 1e300, -1e300, float('nan'), float('inf'), float('-inf'), '\0', '../x', 'x' * 4000)


def leaves(data: Any, path: tuple = ()) -> Iterator[tuple]:
    """The path of every value, of lists and mappings, too."""
    if path:
        yield path
    entries = (data.items() if isinstance(data, dict) else
               enumerate(data) if isinstance(data, list) else ())
    for key, value in entries:
        yield from leaves(value, (*path, key))


def edited(data: dict, path: tuple, value: Any) -> dict:
    data = copy.deepcopy(data)
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return data


def edits(data: dict) -> list[tuple[tuple, Any]]:
    """All that change something."""
    found = []
    for path in leaves(data):
        place: Any = data
        for key in path:
            place = place[key]
        found += [(path, value) for value in VALUES
                  if value != place or type(value) is not type(place)]
    return found


def read_manifest(store: Path) -> dict:
    """Without its seal."""
    data = yaml.safe_load((store / 'manifest.yaml').read_text())
    del data['sha256']
    return data


def seal(store: Path, data: dict) -> None:
    """As another version of the writer would."""
    body = yaml.safe_dump(data, sort_keys=False)
    (store / 'manifest.yaml').write_text(
        f'{body}sha256: {hashlib.sha256(body.encode()).hexdigest()}\n')


def chosen(path: tuple) -> bool:
    return '.'.join(map(str, path)).startswith(CHOSEN)


def _manifest(trial: Trial, use: str, draw: random.Random) -> Ending:
    store = copied_store(trial, use, 'manifest.yaml')
    data = read_manifest(store)
    path, value = draw.choice([edit for edit in edits(data) if not chosen(edit[0])])
    seal(store, edited(data, path, value))
    return attempt(trial, use, 'threads')


def _profile(trial: Trial, use: str, draw: random.Random) -> Ending:
    """Which says how fast reads are, and so what is read together, but not what comes of it."""
    file = copied_store(trial, use, 'profile.yaml') / 'profile.yaml'
    data = yaml.safe_load(file.read_text())
    file.write_text(yaml.safe_dump(edited(data, *draw.choice(edits(data)))))
    return attempt(trial, use, 'threads')


def _threads(use: str) -> tuple[str, str]:
    return use, 'threads'


ROWS = (Row('sealed edits of the manifest', ('exact', 'gated'), base_of, _threads, _manifest),
        Row('edits of the device profile', ('gated',), base_of, _threads, _profile))
