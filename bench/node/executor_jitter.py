"""A 100 Hz timer in the node's own process: when do its ticks come while the node works?

    python bench/executor_jitter.py [--store FOLDER] [--seconds 10] [--threads 1] [--json PATH]

The node runs with a timer beside it in the same executor (bench/timed_node.py): idle, reading long
prompts, generating, and once more. The same timer in a process of its own beside it tells how busy
the machine was.
"""

from argparse import ArgumentParser
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


def measure(store: Path, seconds: float, threads: int, rounds: int = 2) -> dict:
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
    return {'threads': threads, 'load': os.getloadavg()[0], 'phases': found}


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


def show(found: dict) -> None:
    print(f'{found["threads"]} computing thread(s), load average {found["load"]:.1f}; ticks by how '
          'much their period was too long or short')
    edges = [f'< {edge}' for edge in EDGES] + [f'>= {EDGES[-1]}']
    print(f'{"ms":<18}' + ''.join(f'{edge:>8}' for edge in edges) + '   of')
    for phase, timers in found['phases'].items():
        for name, timer in timers.items():
            row = ''.join(f'{timer["histogram_ms"].get(edge, 0):>8}' for edge in edges)
            print(f'{phase + " " + name:<18}{row}   {timer["ticks"]}/{timer["expected"]}')
    parts = [f'{phase} {timers["node"]["ticks"]} of {timers["node"]["expected"]} '
             f'(95 % within {timers["node"]["p95_ms"]:.1f} ms)'
             for phase, timers in found['phases'].items()]
    print('Ticks of the 100 Hz timer in the node: ' + ', '.join(parts))


def main() -> None:
    parser = ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--store', type=Path, default=STORE, help='default: %(default)s')
    parser.add_argument('--seconds', type=float, default=10.0, help='of each phase, twice')
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--json', type=Path)
    options = parser.parse_args()
    found = measure(options.store, options.seconds, options.threads)
    show(found)
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=2) + '\n')


if __name__ == '__main__':
    main()
