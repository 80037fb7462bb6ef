"""A flash store for a measurement: the one that is there, or a new one."""

from pathlib import Path

from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.convert.conversion import ConversionOptions, convert


def ensure_store(source: Path, store: Path, **options: object) -> Path:
    """`store`, converted from the checkpoint `source` with these options when it is missing."""
    if not store.exists():
        with Steps() as steps:
            convert(source, store, ConversionOptions(**options), steps)
    return store
