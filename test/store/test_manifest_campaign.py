"""Each field of a manifest, changed and sealed again: a typed error, or the same text as before."""

from pathlib import Path
import random
import shutil

import pytest

from bench.faults.manifests import chosen, edited, edits, read_manifest, seal
from flash_llm_ros.engine import Engine, EngineConfig, GenerationRequest
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

SEED = 14
EDITS = 120     # of each store's 4,000


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


@pytest.mark.parametrize('mode', ['exact', 'gated'])
def test_sealed_edits(stores: dict[str, Path], tmp_path: Path, mode: str) -> None:
    store = shutil.copytree(stores[mode], tmp_path / 'store')
    data, expected = read_manifest(store), outcome(store, mode)
    assert expected not in ErrorCode.__members__
    for path, value in random.Random(SEED).sample(edits(data), EDITS):
        seal(store, edited(data, path, value))
        found = outcome(store, mode)
        if not chosen(path):
            assert found in (*ErrorCode.__members__, expected), (path, value, found)
        assert found not in ('INTERNAL', 'EMPTY_PROMPT'), (path, value, found)
