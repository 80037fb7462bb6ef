"""The process that finds what bench.memory.capped's engines could reach: how fast memory is read by
so many threads, and the flash in a stream; JSON out.
"""

import json
import sys

from bench.support.memory_roof import MemoryRoof
from flash_llm_ros import _native
from flash_llm_ros.store.device_profile import STREAM_REQUEST

_MEMORY = 256_000_000       # bytes
_ROUNDS = 10
_SECONDS = 0.5              # of reading the flash
_IN_FLIGHT = 64


def main() -> None:
    job = json.loads(sys.argv[1])
    found = _native.measure_reads(job['file'], STREAM_REQUEST, _IN_FLIGHT, _SECONDS, 'sequential',
                                  checksum=False)
    print(json.dumps({
        'memory_rate': MemoryRoof(_MEMORY).bandwidth(job['threads'], _ROUNDS),
        'flash_rate': found['bytes'] / found['seconds']}))


if __name__ == '__main__':
    main()
