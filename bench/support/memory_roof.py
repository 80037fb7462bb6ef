"""How fast this machine reads memory, the roof of what passes over all weights for a token."""

from concurrent.futures import ThreadPoolExecutor
import mmap
import time

import numpy as np

_HUGE_PAGE = 1 << 21


class MemoryRoof:
    """Memory in huge pages, where the system gives them, to be read."""

    def __init__(self, size: int) -> None:
        memory = mmap.mmap(-1, size + 2 * _HUGE_PAGE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        memory.madvise(mmap.MADV_HUGEPAGE)
        whole = np.frombuffer(memory, np.uint8)
        first = -whole.ctypes.data % _HUGE_PAGE
        # NumPy's largest of int32 does nothing else but read.
        self._words = whole[first:first + size // 4 * 4].view(np.int32)
        self._words[:] = 1

    def thread_seconds(self) -> float:
        """For all of it by one thread, of its time on a processor."""
        begin = time.thread_time()
        self._words.max()
        return time.thread_time() - begin

    def bandwidth(self, threads: int, rounds: int) -> float:
        """Bytes per second by so many threads at once: the best round, since others disturb."""
        shares = np.array_split(self._words, threads)

        def read(share: np.ndarray) -> tuple[float, float]:
            begin = time.perf_counter()
            share.max()
            return begin, time.perf_counter()

        seconds = []
        with ThreadPoolExecutor(threads) as pool:
            for _ in range(rounds):
                begins, ends = zip(*pool.map(read, shares), strict=True)
                seconds.append(max(ends) - min(begins))
        return self._words.nbytes / min(seconds)
