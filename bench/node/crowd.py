"""The clients of a crowd: each asks one thing after the other and keeps how it ended."""

from collections.abc import Callable
from dataclasses import dataclass
import random
import threading
import time

from rclpy.action import ActionClient
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.qos import QoSProfile
from std_msgs.msg import String

from flash_llm_msgs.action import GenerateText
from flash_llm_msgs.msg import OutputConstraint
from flash_llm_msgs.srv import GenerateText as GenerateTextService
from flash_llm_ros.client.qos import CALLS
from flash_llm_ros.store.errors import ErrorCode

LONGEST = 300.0     # s that a result is waited for
# s until the node knows of a client what the client knows of the node: an answer is lost before.
DISCOVERY = 5.0
KINDS = (('plain', 48), ('urgent', 10), ('deadline', 8), ('cancelled', 10), ('bad', 5),
         ('too long', 2), ('service', 4), ('session', 7), ('constrained', 4), ('topic', 2))
UNANSWERED = 'topic'    # shows on ~/stream only, where nobody knows whose it is
TURNS = 3               # of a conversation, which would soon be longer than the context
REASONS = ('RUNNING', 'STOP', 'LENGTH', 'CANCELLED', 'DEADLINE', 'ERROR')
PROMPTS = ('Where is the dock?', 'Say what you see.', 'Drive to the door and wait. ' * 6,
           'List the rooms: kitchen, hall, lab. List the rooms: kitchen,')
CONSTRAINTS = (
    OutputConstraint(kind=OutputConstraint.CHOICES, choices=['left', 'right', 'straight on']),
    OutputConstraint(kind=OutputConstraint.REGEX, text='[0-9]{1,3} cm'),
    OutputConstraint(kind=OutputConstraint.JSON_SCHEMA, text='{"type": "boolean"}'))


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
    if kind == 'too long':
        ask.prompt *= 1000
    if kind == 'constrained':
        ask.constraint = chance.choice(CONSTRAINTS)
    if kind == 'bad':
        name, value = chance.choice((('temperature', -1.0), ('top_p', float('nan')),
                                     ('top_k', -3)))
        setattr(ask.sampling, name, value)
    return (ask.prompt, ask.sampling.max_tokens, ask.sampling.temperature, ask.sampling.seed,
            ask.constraint.kind)


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
        self.prompt = self.node.create_publisher(
            String, '/flash_llm/prompt', QoSProfile(depth=100))
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
    time.sleep(DISCOVERY)
    for turn in range(count):
        kind = chance.choices(*zip(*KINDS, strict=True))[0]
        if kind == 'topic':
            client.prompt.publish(String(data=chance.choice(PROMPTS)))
            ends.append(End(kind, 'sent', 0.0, 0, (), ''))
        elif kind == 'service':
            call = GenerateTextService.Request()
            key = fill(call, kind, chance)
            ends.append(end_of(kind, key, client.call(client.service.call_async, call)))
        else:
            goal = GenerateText.Goal()
            key = fill(goal, kind, chance)
            if kind == 'session':       # what it says depends on its turns before
                goal.session_id = f'{number}.{turn // TURNS}'
                key += (number, turn)
            ends.append(end_of(kind, key, ask(client, goal, kind, chance)))


def ask(client: Client, goal: GenerateText.Goal, kind: str,
        chance: random.Random) -> GenerateText.Result:
    """Send a goal and return its result; some are cancelled meanwhile."""
    handle = client.call(client.action.send_goal_async, goal)
    result = client.send(handle.get_result_async)
    if kind == 'cancelled':
        time.sleep(chance.choice((0.0, 0.02, 0.2)))
        client.send(handle.cancel_goal_async)
    return client.wait(result).result
