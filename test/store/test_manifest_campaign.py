"""Each field of a manifest, changed and sealed again: a typed error, or the same text as before."""

from collections.abc import Iterator
import copy
import hashlib
from pathlib import Path
import random
import shutil
from typing import Any

import pytest
import yaml

from flash_llm_ros.engine import Engine, EngineConfig, GenerationRequest
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

SEED = 14
EDITS = 120     # of each store's 4,000
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


def seal(store: Path, data: dict) -> None:
    body = yaml.safe_dump(data, sort_keys=False)
    (store / 'manifest.yaml').write_text(
        f'{body}sha256: {hashlib.sha256(body.encode()).hexdigest()}\n')


def outcome(store: Path, mode: str) -> str:
    """The text, or the name of the code that it was refused with."""
    try:
        engine = Engine.open(EngineConfig(store, 40_000_000, mode, context_length=64))
        try:
            return ''.join(engine.start(GenerationRequest('Hello', max_tokens=4)))
        finally:
            engine.close()
    except FlashLlmError as error:
        return error.code.name


def campaign(data: dict) -> list[tuple[tuple, Any]]:
    """All edits that change something, in an order of their own."""
    found = []
    for path in leaves(data):
        place: Any = data
        for key in path:
            place = place[key]
        for value in VALUES:
            if value != place or type(value) is not type(place):
                found.append((path, value))
    random.Random(SEED).shuffle(found)
    return found


@pytest.mark.parametrize('mode', ['exact', 'gated'])
def test_sealed_edits(stores: dict[str, Path], tmp_path: Path, mode: str) -> None:
    store = shutil.copytree(stores[mode], tmp_path / 'store')
    data = yaml.safe_load((store / 'manifest.yaml').read_text())
    del data['sha256']
    expected = outcome(store, mode)
    assert expected not in ErrorCode.__members__
    for path, value in campaign(data)[:EDITS]:
        seal(store, edited(data, path, value))
        found = outcome(store, mode)
        if not '.'.join(map(str, path)).startswith(CHOSEN):
            assert found in (*ErrorCode.__members__, expected), (path, value, found)
        assert found not in ('INTERNAL', 'EMPTY_PROMPT'), (path, value, found)
