"""A 100 Hz timer in the node's own process: when do its ticks come while the node is idle, reads
long prompts, generates?

The timer runs in the same executor (bench/node/timed_node.py), and the same one in a process of its
own beside it tells how busy the machine was.
"""

from argparse import ArgumentParser, Namespace
from collections import Counter
import json
import os
from pathlib import Path
import subprocess
import sys
import tempfile
import time

from bench.node import timed_node
from bench.node.timed_node import EDGES, report
from bench.support.command import Report, at_least, command, run, show

STORE = Path('models/smollm2.store')
LONG_PROMPT = 'The robot drives along the wall of the hall and looks for the door. ' * 24
LONGEST = 120.0  # s
CONTROL = '''
import json, os, sys, time
import rclpy
from rclpy.node import Node
rclpy.init()
node, times = Node('control'), []
node.create_timer(0.01, lambda: times.append(time.monotonic()))
while not os.path.exists(sys.argv[1]):
    rclpy.spin_once(node)
print(json.dumps(times))
'''


def work(client: object, phase: str, seconds: float) -> None:
    """Keep the node at one kind of work for so long."""
    from flash_llm_msgs.action import GenerateText

    end = time.monotonic() + seconds
    if phase == 'idle':
        time.sleep(seconds)
        return
    while (left := end - time.monotonic()) > 0:
        goal = GenerateText.Goal(prompt='Tell a long story.', deadline=left)
        goal.sampling.max_tokens = 400
        if phase == 'prefill':
            goal.prompt, goal.sampling.max_tokens = LONG_PROMPT, 1
        client.send_goal(goal).result(LONGEST)


def within(times: list[float], begin: float, end: float) -> list[float]:
    return [moment for moment in times if begin <= moment < end]


def ticks_by_phase(store: Path, seconds: float, threads: int, rounds: int = 2) -> dict:
    from flash_llm_ros.cli.node_process import NodeProcess
    from flash_llm_ros.client.operator import OperatorClient

    domain = os.getpid() % 101 + 1
    parameters = {'store': str(store), 'memory.dram_budget': '140MB', 'autostart': True,
                  'compute.threads': threads}
    phases = []
    with tempfile.TemporaryDirectory() as folder:
        ticks, stop = Path(folder, 'ticks'), Path(folder, 'stop')
        control = subprocess.Popen([sys.executable, '-c', CONTROL, str(stop)],
                                   env={**os.environ, 'ROS_DOMAIN_ID': str(domain % 101 + 1)},
                                   stdout=subprocess.PIPE, text=True)
        with NodeProcess(parameters, domain,
                         command=(sys.executable, timed_node.__file__),
                         environment={'TICKS_FILE': str(ticks)}) as process:
            with OperatorClient(domain_id=domain, give_up=process.has_ended) as client:
                client.wait_for_node(60.0)
                client.until(lambda: client.status.state >= client.status.IDLE, 60.0, 'a store')
                work(client, 'decode', 1.0)
                for phase in rounds * ('idle', 'prefill', 'decode'):
                    begin = time.monotonic()
                    work(client, phase, seconds)
                    phases.append((phase, begin, time.monotonic()))
            process.stop()
        stop.touch()
        own = json.loads(control.communicate(timeout=30)[0])
        node = json.loads(ticks.read_text())
    found = {phase: {} for phase, _, _ in phases}
    for name, times in (('node', node), ('control', own)):
        for phase in found:
            found[phase][name] = joined([report(within(times, begin, end))
                                         for kind, begin, end in phases if kind == phase])
    return found


def joined(reports: list[dict]) -> dict:
    """Two rounds of one phase as one."""
    histogram = Counter()
    for found in reports:
        histogram.update(found['histogram_ms'])
    return {'ticks': sum(found['ticks'] for found in reports),
            'expected': sum(found['expected'] for found in reports),
            'histogram_ms': dict(histogram),
            **{name: max(found[name] for found in reports)
               for name in ('median_ms', 'p95_ms', 'most_ms')}}


def measure(options: Namespace) -> Report:
    found = ticks_by_phase(options.store, options.seconds, options.threads)
    edges = [*(f'< {edge}' for edge in EDGES), f'>= {EDGES[-1]}']
    show(('ms too long or short', *edges, 'ticks', 'of'),
         [(f'{phase} {name}', *(str(timer['histogram_ms'].get(edge, 0)) for edge in edges),
           str(timer['ticks']), str(timer['expected']))
          for phase, timers in found.items() for name, timer in timers.items()])
    return Report({'threads': options.threads, 'phases': found},
                  'ticks of the 100 Hz timer in the node: ' + ', '.join(
        f'{phase} {timers["node"]["ticks"]} of {timers["node"]["expected"]} '
        f'(95 % within {timers["node"]["p95_ms"]:.1f} ms)' for phase, timers in found.items()))


def parser() -> ArgumentParser:
    result = command(__doc__)
    result.add_argument('--store', type=Path, default=STORE, help='default: %(default)s')
    result.add_argument('--seconds', type=float, default=10.0, help='of each phase, twice')
    result.add_argument('--threads', type=at_least(1), default=1, help='that compute')
    return result


if __name__ == '__main__':
    sys.exit(run(parser(), measure))
