"""Rows of the KV cache in a file: written as they lie in memory, given back as the same bytes."""

from collections.abc import Iterable
from contextlib import suppress
import hashlib
from pathlib import Path
import tempfile
from typing import BinaryIO

from flash_llm_ros.engine.conversations.private_folder import private_folder
from flash_llm_ros.engine.model.model import Model
from flash_llm_ros.store.errors import ChecksumError, ErrorCode, FlashLlmError, ReadFailedError

# A file: magic, key, length of the parts (little endian), the parts, SHA-256 of all before.
_MAGIC = b'flash_llm kv 1\n\n'
KEY_BYTES = 32
_LENGTH_BYTES = 8
_HASH_BYTES = 32
_NO_KEY = bytes(KEY_BYTES)
_NAME = 'The snapshot of the KV cache'


class KvSnapshot:
    """A snapshot in a file without a name: gone with this object, and with the process."""

    def __init__(self, folder: Path, model: Model, length: int, logits: bool = False) -> None:
        """Write the KV cache up to `length` tokens; no copy is made in memory.

        Raises FlashLlmError(READ_FAILED) where the folder takes no file, or no more bytes.
        """
        self.length, self._logits, self._end = length, logits, model.end
        try:
            with private_folder(folder):
                self._file = tempfile.TemporaryFile(dir=folder)     # noqa: SIM115 - see close()
            try:
                write_snapshot(self._file, _NO_KEY, self._parts(model))
                self._file.flush()
            except BaseException:
                self.close()
                raise
        except OSError as error:
            raise not_written(folder, error) from None

    def restore(self, model: Model) -> None:
        """Give back what was written.

        Raises FlashLlmError(READ_FAILED or CHECKSUM_MISMATCH); the model holds anything then.
        """
        try:
            self._file.seek(0)
        except OSError as error:
            raise ReadFailedError(f'{_NAME} cannot be read: {error.strerror}.') from None
        model.end = self._end
        read_snapshot(self._file, _NAME, _NO_KEY, self._parts(model))

    def close(self) -> None:
        """Give the file up; idempotent."""
        with suppress(OSError):     # what is left in its buffer may not fit; nobody needs it
            self._file.close()

    def _parts(self, model: Model) -> list[memoryview]:
        logits = [memoryview(model.logits).cast('B')] if self._logits else []
        return [*model.attention.rows(self.length), *logits]


def write_snapshot(file: BinaryIO, key: bytes, parts: Iterable[memoryview]) -> None:
    """Write a snapshot; raises OSError."""
    parts = list(parts)
    digest = hashlib.sha256()
    length = sum(part.nbytes for part in parts).to_bytes(_LENGTH_BYTES, 'little')
    for piece in (_MAGIC, key, length, *parts):
        digest.update(piece)
        file.write(piece)
    file.write(digest.digest())


def read_snapshot(file: BinaryIO, name: str, key: bytes, parts: Iterable[memoryview]) -> None:
    """Fill the parts from a snapshot that was written under the same key.

    Raises FlashLlmError(READ_FAILED or CHECKSUM_MISMATCH); the parts hold anything then.
    """
    parts = list(parts)
    digest = hashlib.sha256()
    length = sum(part.nbytes for part in parts).to_bytes(_LENGTH_BYTES, 'little')
    expected = _MAGIC + key + length
    at = 0
    try:
        head = file.read(len(expected))
        if head != expected:
            raise ChecksumError(f'{name} is not one of this store, these tokens and settings.')
        digest.update(head)
        at = len(head)
        for part in parts:
            if (found := file.readinto(part)) != part.nbytes:
                raise ChecksumError(f'{name} ends at byte {at + found}; it is shorter than it was '
                                    'written.')
            digest.update(part)
            at += found
        seal = file.read(_HASH_BYTES + 1)
    except OSError as error:
        raise ReadFailedError(f'{name} cannot be read from byte {at} on: '
                              f'{error.strerror}.') from None
    if seal != digest.digest():
        raise ChecksumError(f'{name} is damaged: its SHA-256 does not match.')


def not_written(place: Path, error: OSError) -> FlashLlmError:
    return FlashLlmError(ErrorCode.READ_FAILED,
                         f'A snapshot of the KV cache cannot be written to {place}: '
                         f'{error.strerror}.')
