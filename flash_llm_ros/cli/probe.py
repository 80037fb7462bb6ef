"""`flash_llm probe`: how fast is the device under this store, and what does that allow?"""

from argparse import ArgumentParser, Namespace
from dataclasses import asdict
import json
import os
from typing import Any

from rich.console import Console
from rich.table import Table

from flash_llm_ros.cli.main import fail
from flash_llm_ros.cli.output_path import output_file
from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.engine.memory.device_probe import SMALL_SPAN, probe
from flash_llm_ros.store.device_profile import PATTERNS, PROFILE, DeviceProfile
from flash_llm_ros.store.errors import FlashLlmError
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.geometry import Geometry

EPILOG = """\
examples:
  flash_llm probe /data/smollm2.store                          30 s; run nothing beside it
  flash_llm probe /data/smollm2.store --quick --json probe.json
"""
SECONDS, QUICK_SECONDS = 30.0, 8.0
_STREAM_BYTES = 1 << 20


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument('store', help='a flash store; its profile is written into it')
    parser.add_argument('--quick', action='store_true',
                        help=f'measure {QUICK_SECONDS:.0f} s instead of {SECONDS:.0f}')
    parser.add_argument('--json', type=output_file, metavar='PATH',
                        help='write the figures to PATH')


def run(options: Namespace) -> int:
    try:
        store = FlashStore.open(options.store)
        if not os.access(store.path, os.W_OK):
            raise PermissionError(f'{store.path} cannot be written; its profile is kept there.')
        with Steps() as steps:
            profile = probe(store.neurons, QUICK_SECONDS if options.quick else SECONDS, steps)
        _print(profile, store.manifest.geometry)
        if options.json:
            options.json.write_text(json.dumps(_facts(profile, store), indent=2) + '\n')
        profile.save(store.path / PROFILE)
    except (FlashLlmError, OSError) as error:
        return fail(error)
    print(f'{store.path / PROFILE} is used from the next start on')
    return 0


def floors(profile: DeviceProfile, geometry: Geometry) -> list[tuple[str, int, int, float]]:
    """What a token may cost: what is read, bytes, reads, and the least seconds for them."""
    groups = sum(section.all_groups for section in geometry.sections if section.layer >= 0)
    cases = [('all layers, streamed', groups * geometry.group_bytes, _STREAM_BYTES, None)]
    cases += [(f'{share:.0%} of the layers, scattered',
               max(1, round(groups * share)) * geometry.group_bytes, geometry.group_bytes,
               'random')
              for share in (0.1, 0.01)]
    found = []
    for what, size, length, pattern in cases:
        reads = -(-size // length)
        found.append((what, size, reads, profile.floor_seconds(size, reads, pattern)))
    return found


def _print(profile: DeviceProfile, geometry: Geometry) -> None:
    console = Console(width=100)
    rates = {m[:3]: m for m in profile.measurements}
    for pattern in PATTERNS:
        table = Table(title=f'{pattern} reads: MB/s (thousands of reads a second)', min_width=60)
        table.add_column('bytes', justify='right')
        for depth in profile.depths:
            table.add_column(f'{depth} in flight', justify='right')
        for size in profile.sizes:
            found = [rates[pattern, size, depth] for depth in profile.depths]
            table.add_row(str(size), *(f'{m.bytes_per_second / 1e6:.0f} '
                                       f'({m.reads_per_second / 1e3:.1f})' for m in found))
        console.print(table)
    table = Table('reads in flight', 'a request', 'each MB', 'useful length', min_width=60,
                  title='what scattered reads cost')
    for depth in profile.depths:
        costs = profile.costs(depth)
        table.add_row(str(depth), f'{costs.request_seconds * 1e6:.1f} us',
                      f'{costs.byte_seconds * 1e12:.0f} us', f'{costs.largest_bytes // 1024} KiB')
    console.print(table)
    for what, size, reads, seconds in floors(profile, geometry):
        print(f'{what}: {size / 1e6:.1f} MB in {reads} reads take at least {seconds * 1e3:.1f} ms')
    for line in _remarks(profile):
        print(line)
    print(f'{profile.device}, by {profile.reader}: '
          f'{profile.sequential_bytes_per_second / 1e6:.0f} MB/s sequential, '
          f'{max(m.reads_per_second for m in profile.measurements if m.pattern == "random"):.0f} '
          'random reads/s')


def _remarks(profile: DeviceProfile) -> list[str]:
    lines = []
    if not profile.direct:
        lines.append('the file system refuses direct I/O: figures are those of its page cache')
    if profile.span_bytes < SMALL_SPAN:
        lines.append(f'the store is small ({profile.span_bytes / 1e6:.1f} MB): random reads may '
                     "come from the device's own cache, and be slower on a larger store")
    return lines


def _facts(profile: DeviceProfile, store: FlashStore) -> dict[str, Any]:
    geometry = store.manifest.geometry
    return {'device': asdict(profile.device), 'reader': profile.reader, 'direct': profile.direct,
            'measured_at': profile.measured_at, 'span_bytes': profile.span_bytes,
            'measurements': [{**m._asdict(), 'bytes_per_second': m.bytes_per_second}
                             for m in profile.measurements],
            'costs': {depth: asdict(profile.costs(depth)) for depth in profile.depths},
            'floors': [dict(zip(('what', 'bytes', 'reads', 'seconds'), row, strict=True))
                       for row in floors(profile, geometry)],
            'remarks': _remarks(profile)}
