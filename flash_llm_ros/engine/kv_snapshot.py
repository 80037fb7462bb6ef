"""Arrays kept in an unnamed file on flash while DRAM belongs to somebody else."""

from collections.abc import Sequence
from pathlib import Path
import tempfile
import zlib

import numpy as np
from numpy.typing import NDArray

from flash_llm_ros.store.errors import ErrorCode, FlashLlmError


class KvSnapshot:
    """A copy of C-contiguous arrays, such as the rows of a KV cache that are in use.

    The file has no name, so that nothing is left behind however the process ends. It is not
    forced to the device: a short absence costs a copy in the page cache, which the kernel writes
    out where memory is wanted.
    """

    def __init__(self, arrays: Sequence[NDArray], folder: Path) -> None:
        """Write; raises FlashLlmError(INVALID_PARAMETER) where the folder takes no file."""
        try:
            self._file = tempfile.TemporaryFile(dir=folder)
            try:
                self._checksum = 0
                for array in arrays:
                    data = _bytes(array)
                    self._checksum = zlib.crc32(data, self._checksum)
                    self._file.write(data)
                self._file.flush()
            except BaseException:
                self._file.close()
                raise
        except OSError as error:
            raise FlashLlmError(
                ErrorCode.INVALID_PARAMETER,
                f'scratch_folder is {str(folder)!r}, where a file of '
                f'{sum(array.nbytes for array in arrays) / 1e6:.1f} MB cannot be written: '
                f'{error}.') from None

    def restore(self, arrays: Sequence[NDArray]) -> None:
        """Fill arrays of the same shapes; raises FlashLlmError(READ_FAILED, CHECKSUM_MISMATCH)."""
        checksum = 0
        try:
            self._file.seek(0)
            for array in arrays:
                data = _bytes(array)
                if self._file.readinto(data) != len(data):
                    raise OSError('the file is too short')
                checksum = zlib.crc32(data, checksum)
        except OSError as error:
            raise FlashLlmError(ErrorCode.READ_FAILED, 'The KV cache of a request that was set '
                                f'aside cannot be read: {error}.') from None
        if checksum != self._checksum:
            raise FlashLlmError(ErrorCode.CHECKSUM_MISMATCH, 'The KV cache of a request that was '
                                'set aside comes back with another checksum.')

    def close(self) -> None:
        """Free the file; idempotent."""
        self._file.close()


def _bytes(array: NDArray) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))
