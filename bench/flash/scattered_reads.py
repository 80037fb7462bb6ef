"""How fast one layer's scattered groups arrive: planned by the profile, or not.

    python bench/scattered_reads.py STORE [--rounds 20] [--json PATH]

Groups of the down columns (or bundles) of one layer after the other are drawn at random and read
into an empty cache; the kernels add one row of each. Ways of reading alternate. Beside them what
the device profile allows for the reads as planned; `flash_llm probe` must have measured it.
"""

from argparse import ArgumentParser
import json
import os
from pathlib import Path
import statistics
import sys
import time
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.engine import EngineConfig
from flash_llm_ros.engine.memory.core import load_core_class
from flash_llm_ros.store.device_profile import DeviceProfile, ReadCosts, usable_profile
from flash_llm_ros.store.flash_store import FlashStore
from flash_llm_ros.store.geometry import Geometry, Section
from flash_llm_ros.store.group_size import SCATTERED

SHARES = (0.02, 0.1, 0.25, 0.5, 0.75, 1.0)
LONGEST = 1 << 20


def ways_of(costs: ReadCosts, group_bytes: int) -> dict[str, ReadCosts]:
    """What is compared: what is read together when a request costs so much."""
    byte = costs.byte_seconds
    return {'neighbours only': ReadCosts(0.5 * group_bytes * byte, byte, LONGEST),
            'planned': costs,
            'one stream': ReadCosts(1.0, byte, LONGEST)}


class LayerReader:
    """A core whose cache holds one layer's groups; each call is for another layer."""

    def __init__(self, store: FlashStore) -> None:
        geometry: Geometry = store.manifest.geometry
        self.layers: list[Section] = [section for section in geometry.sections
                                      if section.name in SCATTERED]
        first = self.layers[0]
        self.core: Any = load_core_class()(
            str(store.neurons), geometry.group_bytes, geometry.groups, geometry.dim,
            first.groups, reads_in_flight=EngineConfig.reads_in_flight)
        self._ids = [self.core.add_section(layer.first_group, layer.bundles,
                                           layer.bundles_per_group, layer.rows,
                                           layer.codec.name)
                     for layer in self.layers]
        self.core.set_cache(first.groups)
        self._values = np.ones(first.bundles, np.float32)
        self._x, self._out = np.ones((2, geometry.dim), np.float32)
        self._next = 0

    def read(self, groups: np.ndarray, costs: ReadCosts) -> dict[str, float]:
        """Read these groups of the next layer; seconds, requests and bytes."""
        layer, section = self.layers[self._next], self._ids[self._next]
        self._next = (self._next + 1) % len(self.layers)
        self.core.set_read_costs(costs.request_seconds, costs.byte_seconds, costs.largest_bytes)
        active = np.zeros(layer.bundles, np.uint8)
        active[groups * layer.bundles_per_group] = 1
        before, begin = self.core.stats(), time.perf_counter()
        if layer.rows == 1:
            self.core.add_rows_sparse(section, self._values, active, self._out)
        else:
            self.core.bundled_sparse(section, self._x, active, self._out, 'relu')
        seconds, after = time.perf_counter() - begin, self.core.stats()
        return {'seconds': seconds, 'reads': after['flash_reads'] - before['flash_reads'],
                'bytes': after['flash_bytes'] - before['flash_bytes']}


def measure(store: FlashStore, profile: DeviceProfile, rounds: int) -> list[dict[str, Any]]:
    """A row for each share of groups and way of reading them; medians."""
    reader, rng = LayerReader(store), np.random.default_rng(0)
    ways = ways_of(profile.costs(EngineConfig.reads_in_flight),
                   store.manifest.geometry.group_bytes)
    rows = []
    with Steps() as steps:
        for number, share in enumerate(SHARES):
            found: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
            for _ in range(rounds):
                groups = np.flatnonzero(rng.random(reader.layers[0].groups) < share)
                for way, costs in ways.items():
                    found[way].append(reader.read(groups, costs))
            steps('reading', number + 1, len(SHARES))
            for way, calls in found.items():
                row = {name: statistics.median(call[name] for call in calls)
                       for name in ('seconds', 'reads', 'bytes')}
                rows.append({'share': share, 'way': way, **row,
                             'least': min(call['seconds'] for call in calls),
                             'floor': profile.floor_seconds(row['bytes'], row['reads'], 'random')})
    reader.core.close()
    return rows


def main() -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('store', type=Path)
    parser.add_argument('--rounds', type=int, default=20)
    parser.add_argument('--json', type=Path)
    options = parser.parse_args()
    profile, line = usable_profile(options.store)
    if profile is None:
        parser.error(line)
    load = os.getloadavg()[0]
    rows = measure(FlashStore.open(options.store), profile, options.rounds)
    table = Table('groups', 'way', 'reads', 'MB', 'least ms', 'median ms', 'device allows',
                  title=f'one layer; load average {load:.1f}')
    for row in rows:
        table.add_row(f'{row["share"]:.0%}', row['way'], f'{row["reads"]:.0f}',
                      f'{row["bytes"] / 1e6:.2f}', f'{row["least"] * 1e3:.2f}',
                      f'{row["seconds"] * 1e3:.2f}', f'{row["floor"] * 1e3:.2f} ms',
                      end_section=row['way'] == 'one stream')
    Console(width=100).print(table)
    if options.json:
        options.json.write_text(json.dumps({'load': load, 'rows': rows}, indent=2) + '\n')
    least = {(row['share'], row['way']): row['least'] for row in rows}
    gains = ', '.join(f'{least[share, "neighbours only"] / least[share, "planned"]:.2f}x at '
                      f'{share:.0%}' for share in SHARES)
    print(f'planned beside neighbours only: {gains}')
    return 0


if __name__ == '__main__':
    sys.exit(main())
