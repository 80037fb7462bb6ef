"""Row: ROS messages whose fields hold anything their types allow, read as the node reads them."""

import random

from bench.faults.engine_trial import base_of, beside_others
from bench.faults.hostile_constraints import HOSTILE as CONSTRAINTS
from bench.faults.outcome import Ending, Trial
from bench.faults.row import Row
from flash_llm_msgs.action import GenerateText
from flash_llm_msgs.msg import ChatMessage
from flash_llm_ros.engine import Engine
from flash_llm_ros.node.interfaces.conversions import (
    deadline_seconds,
    forget_texts,
    generation_request,
)

_TEXTS = ('', ' ', 'x', 'Hello', 'x' * 100_000, 'naïve 日本 👍 \u202e \ufffd', '\0', '\n' * 5000,
          '<|im_end|>', '{{ 9 ** 9 ** 9 }}', '../../etc/passwd', '%s%n', 'a\u0300' * 3000)
_FLOATS = (0.0, 1.0, -1.0, 1e-30, 3e38, -3e38, float('nan'), float('inf'), float('-inf'))
_VALUES = {'float': _FLOATS, 'int32': (0, 1, -1, 2 ** 31 - 1, -2 ** 31),
           'uint32': (0, 1, 2, 2 ** 32 - 1), 'uint64': (0, 1, 2 ** 64 - 1)}
CASES = ('sampling', 'messages', 'texts', 'constraint', 'everything')
Goal = GenerateText.Goal


def _sampling(goal: Goal, draw: random.Random) -> None:
    for name, kind in goal.sampling.get_fields_and_field_types().items():
        if draw.random() < 0.3:
            setattr(goal.sampling, name, draw.choice(_VALUES.get(kind, ([],))))
    if draw.random() < 0.3:
        goal.sampling.stop = [draw.choice(_TEXTS) for _ in range(draw.choice((1, 5, 3000)))]


def _messages(goal: Goal, draw: random.Random) -> None:
    roles = ('user', 'assistant', 'system', 'tool', '', 'x' * 5000)
    goal.prompt = draw.choice(('', '', 'and a prompt'))
    goal.messages = [ChatMessage(role=draw.choice(roles[:draw.choice((3, 6))]),
                                 content=draw.choice(_TEXTS))
                     for _ in range(draw.choice((1, 2, 7, 5000)))]


def _texts(goal: Goal, draw: random.Random) -> None:
    for name in ('prompt', 'system_prompt', 'session_id'):
        setattr(goal, name, draw.choice(_TEXTS))
    goal.raw, goal.deadline = draw.random() < 0.5, draw.choice(_FLOATS)


def _constraint(goal: Goal, draw: random.Random) -> None:
    hostile = CONSTRAINTS[draw.choice(sorted(CONSTRAINTS))]()
    goal.constraint.kind = draw.choice((0, 1, 2, 3, 4, 5, 255))
    goal.constraint.text = draw.choice((hostile.text, *_TEXTS))
    goal.constraint.choices = draw.choice(((), hostile.choices, _TEXTS, ('',) * 10_000))


def _attempt(trial: Trial, case: str, draw: random.Random) -> Ending:
    kinds = {'sampling': _sampling, 'messages': _messages, 'texts': _texts,
             'constraint': _constraint}
    goal = Goal(prompt='Hello')
    for kind in kinds if case == 'everything' else (case,):
        kinds[kind](goal, draw)

    def send(engine: Engine) -> None:
        deadline_seconds(goal, default=1.0)
        request = generation_request(goal, max_tokens=16, system_prompt='')
        engine.check(request)
        forget_texts(goal)
        for _ in engine.start(request):
            pass

    return beside_others(trial, send)


ROWS = (Row('hostile ROS messages', CASES, base_of, lambda case: ('constrained', 'threads'),
            _attempt),)
