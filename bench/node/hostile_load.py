"""Eight clients send messages of 1 MB to every interface without a pause: what does the node's
process take beside its budget, while it goes on and behind it?

The same load meets a bare rclpy node with the same endpoints (bench/node/bare_node.py), in turns:
what both take is DDS's and rclpy's. Once each client waits for the answer before it calls again,
once it does not.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from dataclasses import asdict
import json
import os
from pathlib import Path
import statistics
import subprocess
import sys
import tempfile
import time

from bench.node import bare_node
from bench.node.flood import Load
from bench.node.many_requests import tiny_store_in
from bench.support.command import Report, at_least, command, run, show
from bench.support.worker import ROOT
from flash_llm_ros.cli.node_process import COMMAND, NodeProcess

BARE = (sys.executable, bare_node.__file__)
MOST_MORE = 16e6        # bytes that our node may take more than the bare one
STARTED, REST = 60.0, 5.0   # s


def grown(node: Sequence[str], ready: str, parameters: dict[str, object], load: Load) -> dict:
    """The growth of a node's resident set in bytes: at most, and some seconds after the load."""
    with NodeProcess(parameters, load.domain, command=node) as process:
        end = time.monotonic() + STARTED
        while ready not in process.log():
            if process.has_ended() or time.monotonic() > end:
                raise RuntimeError(f'The node did not start: {process.log()}')
            time.sleep(0.1)
        time.sleep(REST)
        before = process.memory('VmRSS')
        Path(f'/proc/{process.pid}/clear_refs').write_text('5')     # the peak counts from here on
        flood = subprocess.run(
            [sys.executable, '-m', 'bench.node.flood', json.dumps(asdict(load))], cwd=ROOT,
            check=True, stdout=subprocess.PIPE, text=True, timeout=STARTED + 20 * load.seconds)
        peak = process.memory('VmHWM') - before
        time.sleep(REST)
        return {'peak': peak, 'kept': process.memory('VmRSS') - before,
                'sent': json.loads(flood.stdout.splitlines()[-1]),
                'tracebacks': process.log().count('Traceback')}


def measure(options: Namespace) -> Report:
    domain, found = os.getpid() % 101 + 1, {}
    with tempfile.TemporaryDirectory() as folder:
        nodes = {'flash_llm': (COMMAND, 'reading with', {
            'store': str(tiny_store_in(folder)), 'memory.dram_budget': '64MB', 'autostart': True}),
            'bare': (BARE, 'ready', {})}
        for calls in (1, options.calls):
            load = Load(domain, options.seconds, options.clients, calls, options.size)
            runs = [(name, grown(*node, load)) for _ in range(options.rounds)
                    for name, node in nodes.items()]
            found[calls] = {name: [run for each, run in runs if each == name] for name in nodes}
    rows = [(f'{name}, {calls} at a time', *(f'{figure(runs, part) / 1e6:.1f}'
                                             for part in ('peak', 'kept')),
             str(sum(sum(run['sent'].values()) for run in runs)))
            for calls, by_node in found.items() for name, runs in by_node.items()]
    show(('MB beside budget', 'at most', 'kept', 'messages'), rows)
    more, kept = ({calls: figure(runs['flash_llm'], part) - figure(runs['bare'], part)
                   for calls, runs in found.items()} for part in ('peak', 'kept'))
    tracebacks = sum(run['tracebacks'] for by_node in found.values()
                     for run in by_node['flash_llm'])
    return Report(
        {str(calls): by_node for calls, by_node in found.items()},
        'more than the bare node: ' + ', '.join(
            f'{more[calls] / 1e6:+.1f} MB at most and {kept[calls] / 1e6:+.1f} MB kept with '
            f'{calls} at a time' for calls in found) + f'; {tracebacks} tracebacks',
        more[1] > MOST_MORE or max(kept.values()) > MOST_MORE or tracebacks > 0)


def figure(runs: list[dict], part: str) -> float:
    return statistics.median(run[part] for run in runs)


def parser() -> ArgumentParser:
    result = command(__doc__)
    result.add_argument('--seconds', type=float, default=10.0, help='of each run')
    result.add_argument('--clients', type=at_least(1), default=8)
    result.add_argument('--size', type=at_least(1), default=1_000_000, help='bytes of a message')
    result.add_argument('--calls', type=at_least(2), default=20,
                        help='of each kind that a client has under way, the second time')
    result.add_argument('--rounds', type=at_least(1), default=3)
    return result


if __name__ == '__main__':
    sys.exit(run(parser(), measure))
