"""Conversations through a real node: messages, sessions, their reset, tokens, the system prompt."""

from pathlib import Path

import pytest
from ros_fixtures import RunningNode, running_node

from flash_llm_ros.engine import Engine, EngineConfig, GenerationRequest, Message
from flash_llm_ros.store.errors import ErrorCode

pytestmark = pytest.mark.ros
TURNS = ('Who are you?', 'And what can you do?', 'Drive to the door')
SYSTEM = 'You are the voice of a robot with two wheels. ' * 3
TIMEOUT = 60.0


def ask(prompt: str, max_tokens: int = 12, messages: tuple[tuple[str, str], ...] = (),
        **fields: object):
    from flash_llm_msgs.action import GenerateText
    from flash_llm_msgs.msg import ChatMessage

    goal = GenerateText.Goal(prompt=prompt, **fields)
    goal.sampling.max_tokens = max_tokens
    goal.messages = [ChatMessage(role=role, content=content) for role, content in messages]
    return goal


def result(node: RunningNode, *arguments: object, **fields: object):
    return node.client.send_goal(ask(*arguments, **fields)).result(TIMEOUT)[1]


def call(node: RunningNode, kind: str, **fields: object):
    import flash_llm_msgs.srv

    service_type = getattr(flash_llm_msgs.srv, kind)
    name = {'ResetSession': 'reset_session', 'Tokenize': 'tokenize'}[kind]
    client = node.client.node.create_client(service_type, f'{node.client.name}/{name}')
    node.client.until(client.service_is_ready, 10, name)
    try:
        return node.client.call(client, service_type.Request(**fields))
    finally:
        node.client.node.destroy_client(client)


@pytest.fixture(scope='module')
def engine(int8_store: Path):
    """What the engine says without ROS."""
    engine = Engine.open(EngineConfig(int8_store, 32_000_000))
    yield engine
    engine.close()


def conversation(engine: Engine, turns: tuple[str, ...] = TURNS) -> list[str]:
    return [''.join(engine.start(GenerationRequest(turn, max_tokens=12, session_id='reference')))
            for turn in turns]


@pytest.fixture(scope='module')
def expected(engine: Engine) -> list[str]:
    found = conversation(engine)
    engine.reset_session('')
    return found


@pytest.fixture(scope='module')
def node(int8_store: Path):
    with running_node(int8_store, max_sessions=2) as node:
        yield node.activate()


@pytest.fixture(autouse=True)
def fresh(request: pytest.FixtureRequest):
    yield
    if 'node' in request.fixturenames:
        call(request.getfixturevalue('node'), 'ResetSession', session_id='')


def test_a_conversation_over_all_interfaces(node: RunningNode, expected: list[str]) -> None:
    """Actions and services go on with the same session; strangers between them change nothing."""
    from flash_llm_msgs.srv import GenerateText

    first = result(node, TURNS[0], session_id='a')
    node.client.ask('a stranger', TIMEOUT)
    request = GenerateText.Request(prompt=TURNS[1], session_id='a')
    request.sampling.max_tokens = 12
    second = node.client.generate_text(request)
    result(node, TURNS[0], session_id='b')
    third = result(node, TURNS[2], session_id='a')
    assert [found.text for found in (first, second, third)] == expected
    known = 0
    for found in (first, second, third):
        assert found.error.code == 0
        assert found.stats.cached_tokens == known
        known = found.stats.prompt_tokens + found.stats.generated_tokens - 1
    seen = len(node.client.statuses)
    node.client.until(lambda: len(node.client.statuses) > seen, 10, 'a status')
    assert node.client.status.sessions == 2


def test_reset(node: RunningNode) -> None:
    for name in ('a', 'b', 'c'):
        result(node, TURNS[0], session_id=name)
    done = call(node, 'ResetSession', session_id='c')
    assert (done.sessions_reset, done.error.code) == (1, ErrorCode.NONE)
    missing = call(node, 'ResetSession', session_id='x')
    assert missing.error.code == ErrorCode.NO_SUCH_SESSION and "'x'" in missing.error.message
    assert call(node, 'ResetSession', session_id='').sessions_reset == 1      # two are kept


def test_messages(node: RunningNode, engine: Engine) -> None:
    turns = (('system', 'Be kind'), ('user', 'a'), ('assistant', 'b'), ('user', 'c'))
    found = result(node, '', messages=turns)
    wanted = engine.start(GenerationRequest(
        messages=tuple(Message(*turn) for turn in turns), max_tokens=12))
    assert found.text == ''.join(wanted)
    assert found.stats.prompt_tokens == wanted.stats.prompt_tokens
    for wrong, words in ((ask('x', messages=turns), 'prompt and messages'),
                         (ask('', messages=(('robot', 'x'),)), 'messages[0].role')):
        error = node.client.send_goal(wrong).result(TIMEOUT)[1].error
        assert error.code == ErrorCode.INVALID_REQUEST and words in error.message


def test_one_turn_after_the_other_whatever_the_priority(node: RunningNode,
                                                        expected: list[str]) -> None:
    """Others push in before a conversation's turn, its own next turn does not."""
    slow = '[piece=0.05] slow'
    running = node.client.send_goal(ask(slow, 60, session_id='a', priority=1))
    node.client.until(lambda: len(running.chunks) > 2, TIMEOUT, 'chunks')
    following = node.client.send_goal(ask('next', session_id='a', priority=200))
    other = node.client.send_goal(ask(TURNS[0], session_id='b', priority=100))
    assert other.result(TIMEOUT)[1].text == expected[0]
    assert not running.done
    first, second = running.result(TIMEOUT)[1], following.result(TIMEOUT)[1]
    assert first.stats.preemptions == 1 and first.error.code == second.error.code == 0
    assert second.stats.cached_tokens == (
        first.stats.prompt_tokens + first.stats.generated_tokens - 1)
    call(node, 'ResetSession', session_id='')
    alone = [result(node, slow, 60, session_id='a'), result(node, 'next', session_id='a')]
    assert [found.text for found in alone] == [first.text, second.text]


def test_tokenize(node: RunningNode, engine: Engine) -> None:
    for text in ('', 'Hello there', 'naïve 日本 👍', '<|im_start|>x'):
        found = call(node, 'Tokenize', text=text)
        assert list(found.tokens) == engine.tokenize(text) and found.error.code == 0
    for text, code in (('x' * 200_000, ErrorCode.PROMPT_TOO_LONG),
                       ('\ufffd', ErrorCode.INVALID_TEXT)):
        refused = call(node, 'Tokenize', text=text)
        assert refused.error.code == code and refused.error.message.startswith('text ')
        assert not refused.tokens


def test_a_system_prompt_is_kept_over_restarts(int8_store: Path, tmp_path: Path,
                                               engine: Engine) -> None:
    def start(**parameters: object) -> tuple[str, object, str]:
        with running_node(int8_store, session_folder=str(tmp_path), prefill_chunk=16,
                          **parameters) as node:
            assert call(node, 'Tokenize', text='x').error.code == ErrorCode.NOT_ACTIVE
            assert node.client.transition('configure')
            reset = call(node, 'ResetSession', session_id='')
            assert reset.error.code == ErrorCode.NOT_ACTIVE
            assert node.client.transition('activate')
            found = result(node, TURNS[0])
            own = result(node, TURNS[0], system_prompt='Be kind')
            assert own.stats.cached_tokens == 0
            assert result(node, TURNS[0], raw=True).stats.cached_tokens == 0
            return found.text, found.stats, node.process.log()

    known = len(engine.tokenize(f'<|im_start|>system\n{SYSTEM}<|im_end|>\n<|im_start|>user\n'))
    cold, stats, log = start(system_prompt=SYSTEM)
    assert f'computing the {known} tokens' in log and stats.cached_tokens == known
    warm, stats, log = start(system_prompt=SYSTEM)
    assert f'read the {known} tokens' in log and stats.cached_tokens == known
    assert cold == warm
