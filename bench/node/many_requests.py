"""A crowd of clients at one node, by every interface: does every request end in a typed state, the
same question get the same answer, and what the node's process has stay flat?

Each client sends one request after the other with priorities, deadlines, conversations,
constraints, cancels and mistakes of its own (bench/node/crowd.py, seeded). Without --store a tiny
store with random weights is made, so that the node and not the flash is measured. Beside it a
100 Hz timer runs in the node's process (bench/node/timed_node.py), which keeps results for 5 s.
"""

from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple, dataclass
import json
import os
from pathlib import Path
import statistics
import sys
import tempfile
import threading
import time

import rclpy

from bench.node import timed_node
from bench.node.crowd import KINDS, UNANSWERED, Client, End, run_client
from bench.node.timed_node import report
from bench.support.command import Report, at_least, command, run, show
from flash_llm_ros.cli.node_process import NodeProcess
from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.client.operator import OperatorClient

TIMED_NODE = (sys.executable, timed_node.__file__)
BETWEEN_LOOKS = 0.5     # s
SHARE = 10              # the first tenth of the requests is compared with the last
SETTLED = 60.0          # s in which what is on its way at the end has to come


@dataclass(frozen=True)
class Look:
    """What the node's process has, once so many requests have ended."""

    requests: int
    rss: int            # bytes
    descriptors: int
    threads: int
    objects: int        # of Python, as far as its collector knows of them


# By how much the last part's median may be above the first part's most.
FLAT = Look(0, 2_000_000, 1, 1, 500)


def look(process: NodeProcess, requests: int, counts: Path) -> Look:
    own = Path(f'/proc/{process.pid}')
    lines = counts.read_text().split('\n') if counts.exists() else []
    return Look(requests, process.memory('VmRSS'), len(list(own.glob('fd/*'))),
                len(list(own.glob('task/*'))), int(lines[-2]) if len(lines) > 1 else 0)


def growth(looks: list[Look], requests: int) -> tuple[Look, Look]:
    """The most in the first part of all requests, and the median in the last."""
    part = requests // SHARE
    counted = [each for each in looks if each.objects]
    first = [each for each in counted if each.requests <= part] or counted[:1]
    last = [each for each in counted if each.requests > requests - part] or counted[-1:]
    return tuple(Look(*map(of, zip(*map(astuple, found), strict=True)))
                 for of, found in ((max, first), (statistics.median_low, last)))


def safely(run: Callable[..., None], lost: list[str], *arguments: object) -> None:
    """A client that loses an answer is one that the table has to show."""
    try:
        run(*arguments)
    except Exception as error:
        lost.append(f'{type(error).__name__}: {error}')


def tiny_store_in(folder: str) -> Path:
    from bench.support.tiny_checkpoint import tiny_store

    return tiny_store(Path(folder))


def crowd(options: Namespace, store: Path) -> dict:
    domain = os.getpid() % 101 + 1
    parameters = {'store': str(store), 'memory.dram_budget': options.budget, 'autostart': True,
                  'requests.queue_size': options.queue, 'requests.structured': True}
    each = options.requests // options.clients
    start = threading.Barrier(options.clients + 1)
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    lost: list[str] = []
    ends: list[End] = []
    with (tempfile.TemporaryDirectory() as folder,
          NodeProcess(parameters, domain, command=TIMED_NODE,
                      environment={'TICKS_FILE': f'{folder}/ticks',
                                   'OBJECTS_FILE': f'{folder}/objects'}) as process,
          OperatorClient(domain_id=domain, give_up=process.has_ended) as monitor,
          ThreadPoolExecutor(options.clients) as pool, Steps() as steps):
        monitor.wait_for_node(SETTLED)
        monitor.until(lambda: monitor.status.state == monitor.status.IDLE, SETTLED, 'a store')
        clients = [Client(number, context) for number in range(options.clients)]
        futures = [pool.submit(safely, run_client, lost, client, number, each, start, ends)
                   for number, client in enumerate(clients)]
        start.wait(120)
        begin, looks = time.monotonic(), []
        while not all(future.done() for future in futures):
            looks.append(look(process, len(ends), Path(folder, 'objects')))
            steps('requests', len(ends), each * options.clients)
            time.sleep(BETWEEN_LOOKS)
        seconds = time.monotonic() - begin
        counted = settled(monitor, len(ends))
        for client in clients:
            client.close()
        log = process.log()
        process.stop()
        ticks = json.loads(Path(folder, 'ticks').read_text())
    rclpy.shutdown(context=context)
    for line in lost:
        print(line)
    return figures(each * options.clients, ends, counted, looks, seconds, report(ticks), log)


def settled(monitor: OperatorClient, requests: int) -> int:
    """How many requests the node has brought to an end, by its own count."""
    def ended() -> int:
        status = monitor.status
        return status.requests_done + status.requests_failed + status.requests_cancelled

    end = time.monotonic() + SETTLED
    while ended() < requests and time.monotonic() < end:
        time.sleep(BETWEEN_LOOKS)
    return ended()


def figures(requests: int, ends: list[End], counted: int, looks: list[Look], seconds: float,
            ticks: dict, log: str) -> dict:
    """What there is to say about the ends of all requests."""
    texts: dict[tuple, set[str]] = {}
    for end in ends:
        if end.state in ('STOP', 'LENGTH'):
            texts.setdefault(end.key, set()).add(end.text)
    served = [end for end in ends if end.state in ('STOP', 'LENGTH')]
    first, last = growth(looks, requests)
    grown = {name: value - getattr(first, name) for name, value in asdict(last).items()
             if name != 'requests'}
    return {
        'requests': len(ends), 'seconds': seconds, 'lost': requests - min(len(ends), counted),
        'states': {kind: dict(Counter(end.state for end in ends if end.kind == kind))
                   for kind, _ in KINDS},
        'without_a_state': sum(end.state.startswith('RUNNING') for end in ends),
        'preempted': sum(end.preemptions > 0 for end in ends),
        'preemptions': sum(end.preemptions for end in ends),
        'same_question_other_text': sum(len(answers) > 1 for answers in texts.values()),
        'questions': len(texts),
        'looks': [astuple(each) for each in looks], 'first': asdict(first), 'last': asdict(last),
        'grown': {name: value for name, value in grown.items() if value > getattr(FLAT, name)},
        'queue_time': {'urgent': spread(end.queue_time for end in served if end.kind == 'urgent'),
                       'others': spread(end.queue_time for end in served
                                        if end.kind != 'urgent')},
        'ticks': ticks, 'tracebacks': log.count('Traceback')}


def spread(values: Iterable[float]) -> list[float]:
    """Median and 95th percentile; empty where there is nothing."""
    ordered = sorted(values)
    if not ordered:
        return []
    return [statistics.median(ordered), ordered[int(0.95 * (len(ordered) - 1))]]


def measure(options: Namespace) -> Report:
    with tempfile.TemporaryDirectory() as folder:
        found = crowd(options, options.store or tiny_store_in(folder))
    print(f'{found["requests"]} requests of {options.clients} clients in '
          f'{found["seconds"]:.0f} s')
    for kind, states in found['states'].items():
        print(f'  {kind:<12}' + ', '.join(f'{count} {state}' for state, count
                                          in sorted(states.items(), key=lambda item: -item[1])))
    print(f'  {UNANSWERED} has no answer of its own; the node counts all')
    for kind, times in found['queue_time'].items():
        if times:
            print(f'  {kind} waited {times[0]:.3f} s (median), {times[1]:.3f} s (95 %)')
    print(f'  {found["preempted"]} requests stood back {found["preemptions"]} times; of '
          f'{found["questions"]} questions asked again and again '
          f'{found["same_question_other_text"]} had more than one answer')
    ticks = found['ticks']
    print(f'  100 Hz timer in the node: {ticks["ticks"]} ticks of {ticks["expected"]}')
    looks = [Look(*each) for each in found['looks']]
    rows = [*looks[::len(looks) // SHARE or 1], looks[-1]]
    show(('after requests', 'RSS MB', 'descriptors', 'threads', 'objects of Python'),
         [(f'{each.requests}', f'{each.rss / 1e6:.1f}', f'{each.descriptors}', f'{each.threads}',
           f'{each.objects}') for each in rows])
    first, last = found['first'], found['last']
    flat = f'grown: {", ".join(found["grown"])}' if found['grown'] else 'flat'
    return Report(
        found, f'{found["requests"]} requests: {found["lost"]} lost, {found["without_a_state"]} '
        f'without a typed state, {found["tracebacks"]} tracebacks; first tenth to last: RSS '
        f'{(last["rss"] - first["rss"]) / 1e6:+.1f} MB, ' + ', '.join(
            f'{last[name] - first[name]:+d} {name}'
            for name in ('descriptors', 'threads', 'objects')) + f' ({flat})',
        bool(found['lost'] or found['without_a_state'] or found['same_question_other_text']
             or found['tracebacks'] or found['grown']))


def parser() -> ArgumentParser:
    result = command(__doc__)
    result.add_argument('--store', type=Path, help='default: a tiny one with random weights')
    result.add_argument('--budget', default='96MB')
    result.add_argument('--requests', type=at_least(1), default=1000)
    result.add_argument('--clients', type=at_least(1), default=20)
    result.add_argument('--queue', type=at_least(1), default=16,
                        help='requests.queue_size of the node')
    return result


if __name__ == '__main__':
    sys.exit(run(parser(), measure))
