"""Hits of every window policy on recorded traces (bench.window.trace), on planted activity of a
ReLU model or planted routing of Qwen3-30B-A3B's shape, beside Belady's optimum.

A window holds a share of the groups; it begins empty, and filling it counts.
"""

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path
import sys

import numpy as np

from bench.experts.planted_routing import planted_routing
from bench.paper.planted_activity import PlantedActivity
from bench.support.command import Report, at_least, command, run, show
from bench.window.replayer import at_best, replay
from bench.window.trace import NeuronTrace

IN_USE = 'least_likely'
POLICIES = ('least_recent', 'sliding_window:1', 'sliding_window:2', 'sliding_window:5',
            'least_frequent:8', 'least_frequent:32', 'least_likely:2', 'least_likely',
            'least_likely:16', 'hot_set', 'segmented', 'arbitrary')


def planted(tokens: int, layers: int = 8, neurons: int = 4096) -> NeuronTrace:
    """What a ReLU model's predictor asks for, with planted statistics, a neuron a group."""
    return NeuronTrace(f'planted ReLU activity, {layers} x {neurons}', 1,
                       PlantedActivity(layers, neurons).predicted(tokens).astype(bool))


def planted_experts(tokens: int, layers: int = 48) -> NeuronTrace:
    """What a router asks for, with planted statistics, an expert a group."""
    return NeuronTrace(f'planted routing, {layers} x 8 of 128', 1,
                       planted_routing(tokens, layers, 128, 8))


def rates_of(trace: NeuronTrace, windows: list[float]) -> dict:
    """Hit rates by policy, one a window; 'belady' is the bound."""
    uses = trace.groups()
    tokens, layers, _ = trace.active.shape
    total = layers * trace.layer_groups
    largest = max(len(groups) for token in uses for groups in token)
    slots = [max(round(share * total), largest) for share in windows]
    rates = {policy: [replay(policy, count, uses).hit_rate for count in slots]
             for policy in POLICIES}
    rates['belady'] = [at_best(count, uses).hit_rate for count in slots]
    return {'model': trace.model, 'tokens': tokens, 'groups': total, 'per_group': trace.per_group,
            'neurons_used': float(trace.active.mean()),
            'groups_used': sum(len(groups) for token in uses for groups in token) / tokens / total,
            'windows': [count / total for count in slots], 'hit_rates': rates}


def print_rates(found: dict) -> None:
    best = np.max([rates for policy, rates in found['hit_rates'].items() if policy != 'belady'],
                  axis=0)
    show(('policy', *(f'{share:.0%}' for share in found['windows'])),
         [(policy, *(f'{"*" if rate >= top else ""}{rate:.3f}'
                     for rate, top in zip(rates, best, strict=True)))
          for policy, rates in found['hit_rates'].items()],
         f'{found["model"]}: {found["tokens"]} tokens; of {found["groups"]} groups of '
         f'{found["per_group"]} neurons a token uses {found["groups_used"]:.1%} '
         f'({found["neurons_used"]:.1%} of the neurons)')


def measure(options: Namespace) -> Report:
    traces = [NeuronTrace.load(path) for path in options.traces]
    if options.per_group:
        traces = [replace(trace, per_group=options.per_group) for trace in traces]
    if options.planted_experts:
        traces.append(planted_experts(options.tokens))
    if options.planted or not traces:
        traces.append(planted(options.tokens))
    results = []
    for trace in traces:
        results.append(rates_of(replace(trace, active=trace.active[:options.tokens]),
                                options.windows))
        print_rates(results[-1])
    shares = [np.divide(found['hit_rates'][IN_USE], found['hit_rates']['belady']).mean()
              for found in results]
    return Report(results, f'{IN_USE}, in use: ' + ', '.join(
        f'{share:.0%} of the optimal hits on {found["model"]}'
        for share, found in zip(shares, results, strict=True)))


def parser() -> ArgumentParser:
    result = command(__doc__)
    result.add_argument('traces', type=Path, nargs='*')
    result.add_argument('--planted', action='store_true', help='planted activity beside traces')
    result.add_argument('--planted-experts', action='store_true', help='planted routing, too')
    result.add_argument('--tokens', type=at_least(1), default=96, help='at most, of each trace')
    result.add_argument('--windows', type=float, nargs='+', default=[0.1, 0.25, 0.5, 0.75],
                        help='shares of the groups that have a place')
    result.add_argument('--per-group', type=at_least(1), help='neurons (default: as in the store)')
    return result


if __name__ == '__main__':
    sys.exit(run(parser(), measure))
