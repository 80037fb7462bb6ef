"""How fast one layer's scattered groups arrive, read as the device profile plans it, or not, beside
what the device allows; takes a store of a gated model that `flash_llm probe` has measured.

Groups of the bundles of one layer after the other are drawn at random and read into an empty cache;
the kernels use one bundle of each. Ways of reading alternate.
"""

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path
import statistics
import sys
import time
from typing import Any

import numpy as np

from bench.support.command import Report, at_least, command, run, show
from flash_llm_ros import _native
from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.engine import EngineConfig
from flash_llm_ros.store.device_profile import DeviceProfile, ReadCosts, usable_profile
from flash_llm_ros.store.flash_store import FlashStore

SHARES = (0.02, 0.1, 0.25, 0.5, 0.75, 1.0)
LONGEST = 1 << 20


def ways_of(costs: ReadCosts, group_bytes: int) -> dict[str, ReadCosts]:
    """What is compared: what is read together when a request costs so much."""
    def requests_cost(seconds: float) -> ReadCosts:
        return replace(costs, request_seconds=seconds, largest_bytes=LONGEST)

    return {'neighbours only': requests_cost(0.5 * group_bytes * costs.byte_seconds),
            'planned': costs, 'one stream': requests_cost(1.0)}


class LayerReader:
    """A core whose cache holds one layer's groups; each call is for another layer."""

    def __init__(self, store: FlashStore) -> None:
        geometry = store.manifest.geometry
        self.layers = [section for section in geometry.sections if section.name == 'bundle']
        if not self.layers:
            raise ValueError(f'{store.path} is no store of a gated model')
        first = self.layers[0]
        self.core = _native.NeuronCore(
            str(store.neurons), geometry.group_bytes, geometry.groups, geometry.dim,
            first.groups, identity=store.manifest.identity,
            reads_in_flight=EngineConfig.reads_in_flight)
        self._ids = [self.core.add_section(layer.first_group, layer.bundles,
                                           layer.bundles_per_group, layer.rows,
                                           layer.codec.name)
                     for layer in self.layers]
        self.core.set_cache(first.groups)
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
        self.core.bundled_sparse(section, self._x, active, self._out, 'relu')
        seconds, after = time.perf_counter() - begin, self.core.stats()
        return {'seconds': seconds, 'reads': after['flash_reads'] - before['flash_reads'],
                'bytes': after['flash_bytes'] - before['flash_bytes']}


def rows_of(store: FlashStore, profile: DeviceProfile, rounds: int) -> list[dict[str, Any]]:
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


def measure(options: Namespace) -> Report:
    profile, line = usable_profile(options.store)
    if profile is None:
        raise ValueError(line)
    rows = rows_of(FlashStore.open(options.store), profile, options.rounds)
    show(('groups', 'way', 'reads', 'MB', 'least ms', 'median ms', 'device allows ms'),
         [(f'{row["share"]:.0%}', row['way'], f'{row["reads"]:.0f}', f'{row["bytes"] / 1e6:.2f}',
           f'{row["least"] * 1e3:.2f}', f'{row["seconds"] * 1e3:.2f}',
           f'{row["floor"] * 1e3:.2f}') for row in rows], 'one layer')
    least = {(row['share'], row['way']): row['least'] for row in rows}
    return Report(rows, 'planned beside neighbours only: ' + ', '.join(
        f'{least[share, "neighbours only"] / least[share, "planned"]:.2f}x at {share:.0%}'
        for share in SHARES))


def parser() -> ArgumentParser:
    result = command(__doc__)
    result.add_argument('store', type=Path)
    result.add_argument('--rounds', type=at_least(1), default=20)
    return result


if __name__ == '__main__':
    sys.exit(run(parser(), measure))
