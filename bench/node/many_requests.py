"""A crowd of clients at one node, through the action and the service: does every request end in a
typed state, the same question get the same answer, RSS stay flat?

Each client sends one request after the other with priorities, deadlines, cancels and mistakes of
its own (seeded). Without --store a tiny store with random weights is made, so that the node and not
the flash is what is measured. Beside it a 100 Hz timer runs in the node's process
(bench/node/timed_node.py).
"""

from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
import json
import os
from pathlib import Path
import random
import statistics
import sys
import tempfile
import threading
import time

import rclpy
from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node

from bench.node import timed_node
from bench.node.timed_node import report
from bench.support.command import Report, at_least, command, run
from flash_llm_msgs.action import GenerateText
from flash_llm_msgs.srv import GenerateText as GenerateTextService
from flash_llm_ros.cli.node_process import NodeProcess
from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.client.qos import CALLS
from flash_llm_ros.store.errors import ErrorCode

TIMED_NODE = (sys.executable, timed_node.__file__)
LONGEST = 600.0  # s that a result is waited for
KINDS = (('plain', 60), ('urgent', 10), ('deadline', 8), ('cancelled', 12), ('bad', 6),
         ('service', 4))
REASONS = ('RUNNING', 'STOP', 'LENGTH', 'CANCELLED', 'DEADLINE', 'ERROR')
PROMPTS = ('Where is the dock?', 'Say what you see.', 'Drive to the door and wait. ' * 6,
           'List the rooms: kitchen, hall, lab. List the rooms: kitchen,')


@dataclass(frozen=True)
class End:
    """How one request ended."""

    kind: str
    state: str
    queue_time: float
    preemptions: int
    key: tuple
    text: str


def state_name(finish_reason: int, code: int) -> str:
    reason = REASONS[finish_reason]
    return f'{reason} {ErrorCode(code).name}' if code else reason


def end_of(kind: str, key: tuple, answer: object) -> End:
    stats = answer.stats
    return End(kind, state_name(answer.finish_reason, answer.error.code), stats.queue_time,
               stats.preemptions, key, answer.text)


def fill(ask: object, kind: str, chance: random.Random) -> tuple:
    """Fill a goal or a service request; returns what its text depends on."""
    ask.prompt = chance.choice(PROMPTS)
    ask.priority = 200 if kind == 'urgent' else chance.choice((50, 100, 100, 100, 150))
    ask.sampling.max_tokens = chance.choice((4, 16, 40))
    ask.sampling.temperature = chance.choice((0.0, 0.7))
    ask.sampling.seed = chance.randrange(3)
    if kind == 'deadline':
        ask.deadline = chance.choice((0.02, 0.1, 0.4))
    if kind == 'bad':
        name, value = chance.choice((('temperature', -1.0), ('top_p', float('nan')),
                                     ('top_k', -3)))
        setattr(ask.sampling, name, value)
    return ask.prompt, ask.sampling.max_tokens, ask.sampling.temperature, ask.sampling.seed


class Client:
    """A node of its own with the action and the service, spun by a thread of its own."""

    def __init__(self, number: int, context: object) -> None:
        self.node = Node(f'client_{number}', context=context, use_global_arguments=False,
                         enable_rosout=False, start_parameter_services=False)
        self.action = ActionClient(
            self.node, GenerateText, '/flash_llm/generate', goal_service_qos_profile=CALLS,
            result_service_qos_profile=CALLS, cancel_service_qos_profile=CALLS)
        self.service = self.node.create_client(
            GenerateTextService, '/flash_llm/generate_text', qos_profile=CALLS)
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(self.node)
        self._stop = False
        self._thread = threading.Thread(target=self._spin)
        self._thread.start()

    def _spin(self) -> None:
        while not self._stop:
            self._executor.spin_once(timeout_sec=0.1)

    def call(self, send: Callable[..., object], *arguments: object) -> object:
        """Return the answer to what is sent, in the thread that also takes the answers."""
        sent = self.wait(self._executor.create_task(send, *arguments))
        return self.wait(sent)

    def send(self, call: Callable[..., object], *arguments: object) -> object:
        """Return the future of an answer."""
        return self.wait(self._executor.create_task(call, *arguments))

    def wait(self, future: object) -> object:
        """Return a future's result; raises TimeoutError."""
        done = threading.Event()
        future.add_done_callback(lambda _: done.set())
        if not done.wait(LONGEST):
            raise TimeoutError(f'{self.node.get_name()} has waited {LONGEST:g} s.')
        return future.result()

    def close(self) -> None:
        self._stop = True
        self._thread.join()
        self.action.destroy()
        self.node.destroy_node()


def run_client(client: Client, number: int, count: int, start: threading.Barrier,
               ends: list[End]) -> None:
    chance = random.Random(number)
    assert client.action.wait_for_server(60.0) and client.service.wait_for_service(60.0)
    start.wait()
    for _ in range(count):
        kind = chance.choices(*zip(*KINDS, strict=True))[0]
        if kind == 'service':
            call = GenerateTextService.Request()
            key = fill(call, kind, chance)
            answer = client.call(client.service.call_async, call)
        else:
            goal = GenerateText.Goal()
            key = fill(goal, kind, chance)
            handle = client.call(client.action.send_goal_async, goal)
            result = client.send(handle.get_result_async)
            if kind == 'cancelled':
                time.sleep(chance.choice((0.0, 0.02, 0.2)))
                client.send(handle.cancel_goal_async)
            answer = client.wait(result).result
        ends.append(end_of(kind, key, answer))


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
                  'requests.queue_size': options.queue}
    each = options.requests // options.clients
    start = threading.Barrier(options.clients + 1)
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    lost: list[str] = []
    ends: list[End] = []
    with (tempfile.TemporaryDirectory() as folder,
          NodeProcess(parameters, domain, command=TIMED_NODE,
                      environment={'TICKS_FILE': f'{folder}/ticks'}) as process,
          ThreadPoolExecutor(options.clients) as pool, Steps() as steps):
        while 'reading with' not in process.log():
            if process.has_ended():
                raise RuntimeError(process.log())
            time.sleep(0.1)
        clients = [Client(number, context) for number in range(options.clients)]
        futures = [pool.submit(safely, run_client, lost, client, number, each, start, ends)
                   for number, client in enumerate(clients)]
        start.wait(120)
        begin, sizes = time.monotonic(), []
        while not all(future.done() for future in futures):
            sizes.append(process.memory('VmRSS'))
            steps('requests', len(ends), each * options.clients)
            time.sleep(0.5)
        seconds = time.monotonic() - begin
        sizes.append(process.memory('VmRSS'))
        for client in clients:
            client.close()
        log = process.log()
        process.stop()
        ticks = json.loads(Path(folder, 'ticks').read_text())
    rclpy.shutdown(context=context)
    for line in lost:
        print(line)
    return figures(each * options.clients, ends, sizes, seconds, report(ticks), log)


def figures(requests: int, ends: list[End], sizes: list[int], seconds: float, ticks: dict,
            log: str) -> dict:
    """What there is to say about the ends of all requests."""
    texts: dict[tuple, set[str]] = {}
    for end in ends:
        if end.state in ('STOP', 'LENGTH'):
            texts.setdefault(end.key, set()).add(end.text)
    served = [end for end in ends if end.state in ('STOP', 'LENGTH')]
    third = len(sizes) // 3
    return {
        'requests': len(ends), 'seconds': seconds, 'lost': requests - len(ends),
        'states': {kind: dict(Counter(end.state for end in ends if end.kind == kind))
                   for kind, _ in KINDS},
        'without_a_state': sum(end.state.startswith('RUNNING') for end in ends),
        'preempted': sum(end.preemptions > 0 for end in ends),
        'preemptions': sum(end.preemptions for end in ends),
        'same_question_other_text': sum(len(answers) > 1 for answers in texts.values()),
        'questions': len(texts),
        'rss': {'first_third': statistics.median(sizes[:third or 1]),
                'last_third': statistics.median(sizes[-(third or 1):]), 'most': max(sizes)},
        'queue_time': {'urgent': spread(end.queue_time for end in served if end.kind == 'urgent'),
                       'others': spread(end.queue_time for end in served
                                        if end.kind != 'urgent')},
        'ticks': ticks, 'tracebacks': log.count('Traceback')}


def spread(values: object) -> list[float]:
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
        print(f'  {kind:<10}' + ', '.join(f'{count} {state}' for state, count
                                          in sorted(states.items(), key=lambda item: -item[1])))
    rss = {name: size / 1e6 for name, size in found['rss'].items()}
    print(f'  RSS {rss["first_third"]:.1f} MB in the first third of the time, '
          f'{rss["last_third"]:.1f} MB in the last, at most {rss["most"]:.1f} MB')
    for kind, times in found['queue_time'].items():
        if times:
            print(f'  {kind} waited {times[0]:.3f} s (median), {times[1]:.3f} s (95 %)')
    print(f'  {found["preempted"]} requests stood back {found["preemptions"]} times; of '
          f'{found["questions"]} questions asked again and again '
          f'{found["same_question_other_text"]} had more than one answer')
    ticks = found['ticks']
    print(f'  100 Hz timer in the node: {ticks["ticks"]} ticks of {ticks["expected"]}')
    return Report(
        found, f'{found["requests"]} requests: {found["lost"]} lost, {found["without_a_state"]} '
        f'without a typed state, RSS {rss["last_third"] - rss["first_third"]:+.1f} MB, '
        f'{found["tracebacks"]} tracebacks',
        bool(found['lost'] or found['without_a_state'] or found['same_question_other_text']))


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
