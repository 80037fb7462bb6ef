"""Hits of every window policy on recorded traces, beside Belady's optimum.

    flash_llm trace STORE --text FILE --out TRACE
    python bench/policies.py TRACE... [--planted] [--tokens 200] [--windows 0.1 0.25 0.5 0.75]
                             [--bundles-per-group N] [--json PATH]

--planted adds the activity of bench/planted_activity.py, a ReLU model's, one neuron a group.
Drives the native core's own cache bookkeeping, without reads. A window holds a share of the groups
of the sections in the trace; it begins empty, and filling it counts. With --bundles-per-group the
neurons are grouped as if a group held so many.
"""

from argparse import ArgumentParser
from dataclasses import replace
import json
from pathlib import Path
import sys

import numpy as np
from rich.console import Console
from rich.table import Table

from bench.paper.planted_activity import PlantedActivity
from flash_llm_ros import _native
from flash_llm_ros.engine.neuron_trace import NeuronTrace
from flash_llm_ros.engine.numpy_policies import DEFAULT_POLICY

POLICIES = ('least_recent', 'sliding_window:1', 'sliding_window:2', 'sliding_window:5',
            'least_frequent:8', 'least_frequent:32', 'least_likely:2', 'least_likely',
            'least_likely:16', 'hot_set', 'segmented', 'arbitrary')


def regrouped(trace: NeuronTrace, bundles_per_group: int) -> NeuronTrace:
    """The same neurons in groups of another size, numbered anew."""
    per_group = np.full_like(trace.bundles, bundles_per_group)
    ends = np.cumsum(-(-trace.bundles // per_group))
    return replace(trace, bundles_per_group=per_group, file_groups=int(ends[-1]),
                   first_group=np.concatenate([[0], ends[:-1]]))


def planted(tokens: int, layers: int = 8, neurons: int = 4096) -> NeuronTrace:
    """What a ReLU model's predictor asks for, with planted statistics, bundles alone in groups."""
    bits = np.packbits(PlantedActivity(layers, neurons).predicted(tokens), axis=2)
    ones = np.ones(layers, np.int64)
    return NeuronTrace(f'planted ReLU activity, {layers} x {neurons}', tokens, 512,
                       layers * neurons, np.arange(layers) * neurons, neurons * ones, ones,
                       np.tile(np.arange(layers), tokens), np.zeros(layers * tokens, np.uint8),
                       bits.reshape(-1))


def measure(trace: NeuronTrace, windows: list[float]) -> dict:
    """Hit rates by policy, one a window; 'belady' is the bound."""
    events = sections, _, ends, groups = trace.groups(predictions=False)
    total = sum(-(-int(trace.bundles[s]) // int(trace.bundles_per_group[s]))
                for s in trace.used_sections)
    largest = int(np.diff(ends, prepend=0).max())
    slots = [max(round(share * total), largest) for share in windows]
    rates = {policy: [_native.replay(policy, trace.file_groups, count, *events)['hits']
                      / len(groups) for count in slots] for policy in POLICIES}
    rates['belady'] = [_native.most_hits(trace.file_groups, count, *events) / len(groups)
                       for count in slots]
    neurons = [event.neurons.mean() for event in trace if not event.predicted]
    return {'model': trace.model, 'tokens': trace.tokens, 'layers': len(trace.used_sections),
            'groups': total, 'bundles_per_group': int(trace.bundles_per_group[sections[0]]),
            'neurons_used': float(np.mean(neurons)),
            'groups_used': len(groups) / trace.tokens / total,
            'windows': [count / total for count in slots], 'hit_rates': rates}


def show(found: dict) -> None:
    table = Table('policy', *(f'{share:.0%}' for share in found['windows']),
                  title=f'{found["model"]}: {found["tokens"]} tokens; of {found["groups"]} groups '
                        f'of {found["bundles_per_group"]} bundles a token uses '
                        f'{found["groups_used"]:.1%} ({found["neurons_used"]:.1%} of the neurons)')
    best = np.max([rates for policy, rates in found['hit_rates'].items() if policy != 'belady'],
                  axis=0)
    for policy, rates in found['hit_rates'].items():
        table.add_row(policy, *(f'{"*" if rate >= top else " "}{rate:.3f}'
                                for rate, top in zip(rates, best, strict=True)),
                      end_section=policy == 'arbitrary')
    Console(width=110).print(table)


def main() -> int:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('traces', type=Path, nargs='*')
    parser.add_argument('--planted', action='store_true', help='a ReLU activity, too')
    parser.add_argument('--tokens', type=int, default=200, help='at most these of each trace')
    parser.add_argument('--windows', type=float, nargs='+', default=[0.1, 0.25, 0.5, 0.75],
                        help='shares of the groups that have a place')
    parser.add_argument('--bundles-per-group', type=int, help='(default: as in the store)')
    parser.add_argument('--json', type=Path, help='write the figures there')
    options = parser.parse_args()
    results, traces = [], []
    for path in options.traces:
        trace = NeuronTrace.load(path).first(options.tokens)
        if options.bundles_per_group:
            trace = regrouped(trace, options.bundles_per_group)
        traces.append(trace)
    if options.planted:
        traces.append(planted(options.tokens))
    for trace in traces:
        results.append(measure(trace, options.windows))
        show(results[-1])
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + '\n')
    shares = [np.divide(found['hit_rates'][DEFAULT_POLICY], found['hit_rates']['belady']).mean()
              for found in results]
    print(f'{DEFAULT_POLICY}, the default: '
          + ', '.join(f'{share:.0%} of the optimal hits on {found["model"]}'
                      for share, found in zip(shares, results, strict=True)))
    return 0


if __name__ == '__main__':
    sys.exit(main())
