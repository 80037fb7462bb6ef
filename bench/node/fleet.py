"""A fleet of four nodes, one killed within an answer, one slow, one full: is a request lost or an
answer doubled, and does load follow speed?

A tiny store with random weights answers; every node rests, so that four of them can share a small
machine, the slow one four times as long as the others. The full one refuses what finds it busy, and
a stranger keeps it busy. Half of the requests ask for `again`; of the others only those may
end with an error whose text had begun to come from the node that is killed. Right is what a single
node answers. With --hosts every node is in a network namespace of its own, as on a host.
"""

from argparse import ArgumentParser, Namespace
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
import os
from pathlib import Path
import signal
import statistics
import sys
import tempfile
import threading
import time

from bench.support.command import Report, at_least, command, run, show
from bench.support.network_hosts import ENVIRONMENT, command_on, move_to, network_hosts
from flash_llm_ros.cli.node_process import COMMAND, NodeProcess
from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.client import AnswerError, FlashLlmClient, FlashLlmFleet, NodeLostError

DUTY = 0.2
NODES = {'fast': {}, 'killed': {}, 'slow': {'compute.duty_cycle': DUTY / 4},
         'full': {'requests.queue_size': 0, 'requests.when_busy': 'reject'}}
VICTIM = '/killed/flash_llm'
FOUND = 60.0        # s in which every node has to be there
LONGEST = 300.0     # s for all requests
STANDING = 0.5      # s in which what a stopped node has sent arrives
QUESTIONS = [
    {'prompt': prompt, 'max_tokens': tokens, 'temperature': 0.7, 'seed': seed}
    for prompt in ('Where is the dock?', 'Say what you see.', 'Drive to the door and wait.')
    for tokens, seed in ((16, 1), (40, 2), (60, 3))]


@dataclass
class Asked:
    """A request and everything that its caller has heard of it."""

    question: int
    again: bool
    pieces: list[str] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)     # s of time.monotonic()
    pending: object = None

    @property
    def outcome(self) -> object:
        try:
            return self.pending.result(0)
        except (AnswerError, NodeLostError, TimeoutError) as error:
            return error


@contextmanager
def nodes(store: Path, domain: int, hosts: list[str]) -> Iterator[dict[str, NodeProcess]]:
    """The four nodes, each on a host of its own where there are some."""
    with ExitStack() as stack:
        yield {f'/{name}/flash_llm': stack.enter_context(NodeProcess(
            {'store': str(store), 'memory.dram_budget': '96MB', 'autostart': True,
             'compute.duty_cycle': DUTY, **parameters}, domain,
            command=(*(command_on(hosts[number]) if hosts else ()), *COMMAND,
                     '--ros-args', '-r', f'__ns:=/{name}'),
            environment=ENVIRONMENT if hosts else {}))
            for number, (name, parameters) in enumerate(NODES.items())}


def wait_for(what: str, condition: Callable[[], bool], seconds: float) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > limit:
            raise RuntimeError(f'{what} has not come to be within {seconds:g} s')
        time.sleep(0.01)


@contextmanager
def stranger(domain: int) -> Iterator[list[str]]:
    """Somebody else who keeps the full node busy; yields the texts of the answers."""
    texts, over = [], threading.Event()

    def ask_on() -> None:
        with FlashLlmClient('/full/flash_llm', domain_id=domain) as client:
            while not over.is_set():
                try:
                    texts.append(client.generate(**QUESTIONS[-1], priority=101).text)
                except AnswerError:
                    time.sleep(0.05)        # the fleet was first

    thread = threading.Thread(target=ask_on)
    thread.start()
    try:
        yield texts
    finally:
        over.set()
        thread.join()


def kill_within_an_answer(fleet: FlashLlmFleet, process: NodeProcess) -> set[object]:
    """Return the requests of the fleet whose text had begun to come from the node."""
    limit = time.monotonic() + FOUND
    while time.monotonic() < limit:
        if any(request.text for request in list(fleet._members[VICTIM].requests)):
            process.send_signal(signal.SIGSTOP)
            time.sleep(STANDING)
            begun = {request.answer for request in list(fleet._members[VICTIM].requests)
                     if request.text}
            process.send_signal(signal.SIGKILL if begun else signal.SIGCONT)
            if begun:
                return begun
        time.sleep(0.002)
    raise RuntimeError(f'{VICTIM} was never within an answer')


def fleet_trial(store: Path, domain: int, requests: int, again_only: bool = False,
                hosts: list[str] | None = None) -> dict:
    """Ask everything at once, kill a node when a tenth is answered; returns what came of it."""
    with (nodes(store, domain, hosts or []) as processes, FlashLlmFleet(domain_id=domain) as fleet,
          stranger(domain) as strangers, Steps() as steps):
        wait_for('a fleet of four', lambda: len(fleet.statuses()) == len(NODES), FOUND)
        with FlashLlmClient('/fast/flash_llm', domain_id=domain) as single:
            right = [single.generate(**question, timeout=FOUND).text for question in QUESTIONS]
        asked = [Asked(number % len(QUESTIONS), again_only or bool(number // len(QUESTIONS) % 2))
                 for number in range(requests)]
        begin = time.monotonic()
        for each in asked:
            each.pending = fleet.start(
                **QUESTIONS[each.question], again=each.again, on_text=each.pieces.append,
                on_done=lambda pending, each=each: each.ends.append(time.monotonic()))
        wait_for('a tenth of the answers',
                 lambda: sum(bool(each.ends) for each in asked) > requests // 10, LONGEST)
        speeds = {name: seen.tokens_per_second for name, seen in fleet._seen.nodes.items()}
        begun = kill_within_an_answer(fleet, processes[VICTIM])
        killed = time.monotonic()
        while not all(each.ends for each in asked) and time.monotonic() < begin + LONGEST:
            steps('requests', sum(bool(each.ends) for each in asked), requests)
            time.sleep(0.05)
        # A second end, or more text, would come now.
        time.sleep(STANDING)
        refused = {name: status.requests_failed for name, status in fleet.statuses().items()}
    return figures(asked, right, begun, speeds, refused, begin, killed, strangers)


def figures(asked: list[Asked], right: list[str], begun: set[object], speeds: dict[str, float],
            refused: dict[str, int], begin: float, killed: float, strangers: list[str]) -> dict:
    answers = [each for each in asked if not isinstance(each.outcome, Exception)]
    # Who did not ask for more loses what was cut off, and nothing else.
    told = [each for each in asked if isinstance(each.outcome, NodeLostError)
            and each.pending in begun and not each.again]
    per_node = Counter(each.outcome.node for each in answers)
    waits = [each.ends[0] - begin for each in answers]
    return {
        'requests': len(asked), 'answered': len(answers), 'told': len(told),
        'lost': len(asked) - len(answers) - len(told),
        'doubled': sum(len(each.ends) != 1 for each in asked) + sum(
            ''.join(each.pieces) != right[each.question]
            or each.outcome.text != right[each.question] for each in answers),
        'within_an_answer': len(begun),
        'went_on': sum(each.pending in begun and each.again for each in answers),
        'seconds': max(waits), 'median_wait': statistics.median(waits),
        'seconds_until_all_went_on': max((each.ends[0] - killed for each in answers
                                          if each.pending in begun), default=0.0),
        'nodes': {name: {'tokens_per_second': speeds[name], 'answered': per_node[name],
                         'refused': refused.get(name, 0)} for name in map('/{}/flash_llm'.format,
                                                                          NODES)},
        'stranger': {'answered': len(strangers),
                     'wrong': sum(text != right[-1] for text in strangers)}}


def measure(options: Namespace) -> Report:
    from bench.support.tiny_checkpoint import tiny_store

    with (tempfile.TemporaryDirectory() as folder,
          network_hosts(len(NODES) + 1) if options.hosts else nullcontext([]) as hosts):
        if hosts:
            os.environ.update(ENVIRONMENT)
            move_to(hosts[-1])
        else:
            os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
        found = fleet_trial(tiny_store(Path(folder)), os.getpid() % 101 + 1, options.requests,
                            options.again, hosts)
    show(('node', 'tokens/s', 'answered', 'refused'),
         [(name, f'{each["tokens_per_second"]:.0f}', f'{each["answered"]}', f'{each["refused"]}')
          for name, each in found['nodes'].items()])
    print(f'{found["answered"]} answers in {found["seconds"]:.1f} s, half of them within '
          f'{found["median_wait"]:.1f} s; a stranger got {found["stranger"]["answered"]} from the '
          'full node')
    print(f'killed within {found["within_an_answer"]} answers: {found["went_on"]} went on '
          f'elsewhere within {found["seconds_until_all_went_on"]:.1f} s, {found["told"]} that did '
          'not ask for it were told')
    return Report(
        found, f'{found["requests"]} requests to four nodes'
        f'{" on hosts of their own" if hosts else ""}: {found["lost"]} lost, {found["doubled"]} '
        'doubled', bool(found['lost'] or found['doubled'] or found['stranger']['wrong']))


def parser() -> ArgumentParser:
    result = command(__doc__)
    result.add_argument('--requests', type=at_least(20), default=400)
    result.add_argument('--again', action='store_true',
                        help='every request asks for it, not half of them')
    result.add_argument('--hosts', action='store_true',
                        help='each node in a network namespace of its own; takes root')
    return result


if __name__ == '__main__':
    sys.exit(run(parser(), measure))
