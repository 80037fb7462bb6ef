"""Hits of each window policy on recorded traces, beside Belady's optimum.

    flash_llm trace STORE --text FILE --out TRACE
    python bench/policies.py TRACE... [--tokens 128] [--windows 0.1 0.25 0.5 0.75] [--json PATH]

The native core's own cache bookkeeping is driven, without reads. A window's size is given as a
share of the groups of the sections that the trace uses; the first tokens, a quarter, fill it and
are counted all the same.
"""

from argparse import ArgumentParser
import json
from pathlib import Path
import sys

from rich.console import Console
from rich.table import Table

from flash_llm_ros import _native
from flash_llm_ros.engine.neuron_trace import NeuronTrace


def measure(trace: NeuronTrace, policies: list[str], windows: list[float], tokens: int) -> dict:
    """Hit rates by policy, one a window; 'belady' is the bound."""
    events = trace.first(tokens).groups(predictions=False)
    total = sum(-(-int(trace.bundles[s]) // int(trace.bundles_per_group[s]))
                for s in trace.used_sections)
    uses = len(events[3])
    largest = int(max(end - begin for begin, end in zip([0, *events[2][:-1]], events[2],
                                                        strict=True)))
    slots = [max(int(share * total), largest) for share in windows]
    rates = {policy: [_native.replay(policy, trace.file_groups, count, *events)['hits'] / uses
                      for count in slots] for policy in policies}
    rates['belady'] = [_native.most_hits(trace.file_groups, count, *events) / uses
                       for count in slots]
    return {'model': trace.model, 'tokens': min(tokens, trace.tokens), 'groups': total,
            'group_bytes': trace.group_bytes, 'groups_per_token': uses / min(tokens, trace.tokens),
            'windows': [count / total for count in slots], 'hit_rates': rates}
