"""What the order of neurons on flash is worth: reads and milliseconds per token.

    flash_llm trace STORE --text FILE --out TRACE
    python bench/neuron_order.py [TRACE...] [--planted] [--per-group 1 4 10] [--window 0.25]
                                 [--store STORE] [--json PATH]

Orders are learned from the first half of the tokens and measured on the second. --planted adds the
activity of bench/planted_activity.py, a ReLU model's (its neurons fire independently of each
other). A window keeps the groups that were needed most in the first half. Requests are those of
the engine's read plan; milliseconds are what the device profile of --store says that they cost
(without it: 20 us a request and 2 GB/s).
"""

from argparse import ArgumentParser
import json
from pathlib import Path
import sys

import numpy as np
from numpy.typing import NDArray
from planted_activity import PlantedActivity
from rich.console import Console
from rich.table import Table

from flash_llm_ros.convert.neuron_order import Order, by_coactivation, by_frequency
from flash_llm_ros.engine import EngineConfig
from flash_llm_ros.engine.neuron_trace import NeuronTrace
from flash_llm_ros.engine.numpy_read_plan import plan_reads
from flash_llm_ros.store.device_profile import ReadCosts, usable_profile
from flash_llm_ros.store.errors import FlashLlmError

_TYPICAL = ReadCosts(20e-6, 1 / 2e9, 1 << 20)
_PLANTED_LAYERS, _PLANTED_NEURONS, _PLANTED_TOKENS = 4, 4096, 200
_PLANTED_GROUP_BYTES = 4096

Activity = list[NDArray[np.bool_]]          # of each section, [tokens, neurons]


def of_trace(trace: NeuronTrace) -> Activity:
    used: dict[int, list[NDArray[np.uint8]]] = {}
    for event in trace:
        if not event.predicted:
            used.setdefault(event.section, []).append(event.neurons)
    return [np.array(rows).astype(bool) for rows in used.values()]


def planted() -> Activity:
    activity = PlantedActivity(_PLANTED_LAYERS, _PLANTED_NEURONS).predicted(_PLANTED_TOKENS)
    return [activity[:, layer].astype(bool) for layer in range(_PLANTED_LAYERS)]


def orders_of(active: NDArray[np.bool_]) -> dict[str, Order]:
    return {'as converted': np.arange(active.shape[1], dtype=np.int32),
            'frequency': by_frequency(active), 'co-activation': by_coactivation(active)}


def measure(sections: Activity, per_group: int, window: float, group_bytes: int,
            costs: ReadCosts) -> dict[str, dict[str, float]]:
    """Per token, for each order: groups and requests, bytes and milliseconds."""
    found: dict[str, dict[str, float]] = {}
    request = costs.request_seconds / (costs.byte_seconds * group_bytes)
    largest = max(1, costs.largest_bytes // group_bytes)
    for active in sections:
        half = len(active) // 2
        for name, order in orders_of(active[:half]).items():
            groups = in_groups(active[:, order], per_group)
            kept = np.argsort(-groups[:half].sum(axis=0), kind='stable')
            groups[:, kept[:round(window * groups.shape[1])]] = False
            sums = found.setdefault(name, {'groups': 0.0, 'requests': 0.0, 'bytes': 0.0})
            for token in groups[half:]:
                missing = np.flatnonzero(token)
                reads = plan_reads(missing.tolist(), request, largest)
                covered = sum(int(missing[end - 1] - missing[begin]) + 1 for begin, end in reads)
                for key, value in (('groups', len(missing)), ('requests', len(reads)),
                                   ('bytes', covered * group_bytes)):
                    sums[key] += value / (len(active) - half)
    for sums in found.values():
        sums['ms'] = 1e3 * (sums['requests'] * costs.request_seconds
                            + sums['bytes'] * costs.byte_seconds)
    return found


def in_groups(active: NDArray[np.bool_], per_group: int) -> NDArray[np.bool_]:
    """Whether a group holds an active neuron, [tokens, groups]."""
    tokens, neurons = active.shape
    padded = np.zeros((tokens, -(-neurons // per_group) * per_group), bool)
    padded[:, :neurons] = active
    return padded.reshape(tokens, -1, per_group).any(axis=2)


def main() -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('trace', nargs='*', type=Path)
    parser.add_argument('--planted', action='store_true')
    parser.add_argument('--per-group', type=int, nargs='+', default=[1, 4, 10])
    parser.add_argument('--window', type=float, default=0.25, help='share of the groups kept')
    parser.add_argument('--store', type=Path, help='with a device profile')
    parser.add_argument('--json', type=Path)
    options = parser.parse_args()
    profile = usable_profile(options.store)[0] if options.store else None
    costs = profile.costs(EngineConfig.reads_in_flight) if profile else _TYPICAL
    sources = []
    for path in options.trace:
        try:
            trace = NeuronTrace.load(path)
        except (FlashLlmError, OSError) as error:
            print(f'{parser.prog}: {error}', file=sys.stderr)
            return 1
        sources.append((trace.model, of_trace(trace), trace.group_bytes))
    if options.planted:
        sources.append(('planted ReLU', planted(), _PLANTED_GROUP_BYTES))
    if not sources:
        parser.error('nothing to measure: give a TRACE, or --planted')
    table = Table('model', 'neurons a group', 'order', 'groups', 'requests', 'MB', 'ms',
                  'of before')
    figures, headline = [], []
    for model, sections, group_bytes in sources:
        for per_group in options.per_group:
            rows = measure(sections, per_group, options.window, group_bytes, costs)
            before = rows['as converted']['ms']
            for name, row in rows.items():
                table.add_row(model, str(per_group), name, f'{row["groups"]:.0f}',
                              f'{row["requests"]:.0f}', f'{row["bytes"] / 1e6:.2f}',
                              f'{row["ms"]:.2f}', f'{row["ms"] / max(before, 1e-9):.3f}')
                figures.append({'model': model, 'per_group': per_group, 'order': name, **row})
            headline.append(f'{model}, {per_group} a group: ' + ', '.join(
                f'{name} {row["ms"] / max(before, 1e-9):.2f}' for name, row in rows.items()
                if name != 'as converted'))
    Console(width=110).print(table)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=2) + '\n')
    print('time of reads relative to the order as converted: ' + '; '.join(headline))
    return 0


if __name__ == '__main__':
    sys.exit(main())
