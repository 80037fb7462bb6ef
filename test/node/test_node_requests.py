"""Requests through the action, the service and the topics of a real node."""

from pathlib import Path
import signal
import struct
import subprocess
import sys
import time

import pytest

from flash_llm_ros.engine import (
    Engine,
    EngineConfig,
    FinishReason,
    GenerationRequest,
    SamplingParams,
)
from flash_llm_ros.store.errors import ErrorCode

pytestmark = pytest.mark.ros
LONG = 4000     # more tokens than the context holds, so that a request runs until it is ended


def goal(prompt, max_tokens=20, **fields):
    from flash_llm_msgs.action import GenerateText

    sampling = {name: fields.pop(name) for name in list(fields) if name in SAMPLING}
    ask = GenerateText.Goal(prompt=prompt, **fields)
    ask.sampling.max_tokens = max_tokens
    for name, value in sampling.items():
        setattr(ask.sampling, name, value)
    return ask


SAMPLING = {'temperature', 'top_k', 'top_p', 'min_p', 'repetition_penalty', 'seed', 'stop'}


@pytest.fixture(scope='module')
def reference(int8_store):
    """What the engine says without ROS."""
    engine = Engine.open(EngineConfig(int8_store, 32_000_000))

    def answer(prompt, max_tokens=20, **sampling):
        generation = engine.start(GenerationRequest(
            prompt, max_tokens=max_tokens, sampling=SamplingParams(**sampling)))
        return ''.join(generation)

    yield answer
    engine.close()


def check_chunks(chunks, text, reason):
    assert [chunk.sequence for chunk in chunks] == list(range(len(chunks)))
    assert ''.join(chunk.text for chunk in chunks) == text
    assert [chunk.finish_reason for chunk in chunks] == [0] * (len(chunks) - 1) + [reason]


def streamed(client, run):
    """The chunks of ~/stream, to the last one, and a look at the feedback.

    rclpy's action client hands over no feedback once it has the result, be it the last chunk.
    """
    chunks = [client.chunks.get(timeout=10)]
    while chunks[-1].finish_reason == FinishReason.RUNNING:
        chunks.append(client.chunks.get(timeout=10))
    assert run.chunks == chunks[:len(run.chunks)] and len(run.chunks) >= len(chunks) - 1
    return chunks


def test_action_streams_what_the_engine_says(active_node, reference):
    from flash_llm_ros.client.operator import SUCCEEDED

    client = active_node.client
    client._drain()
    run = client.send_goal(goal('Hello [piece=0.02]', 60))
    status, result = run.result(30)
    assert status == SUCCEEDED
    assert result.error.code == ErrorCode.NONE
    assert result.finish_reason == FinishReason.LENGTH
    assert result.text == reference('Hello [piece=0.02]', 60)
    assert len(result.text) == 60
    chunks = streamed(client, run)
    check_chunks(chunks, result.text, FinishReason.LENGTH)
    # 60 pieces of 0.02 s, but never more than one chunk in 0.05 s, the first and the last aside.
    assert 3 <= len(chunks) <= 45
    stats = result.stats
    assert stats.generated_tokens == 60
    assert stats.prompt_tokens > len('Hello [piece=0.02]')
    assert stats.active_fraction == 1.0
    assert len(chunks[0].request_id) == 32


def test_sampling_of_the_goal_arrives(active_node, reference):
    options = {'temperature': 0.75, 'top_k': 40, 'seed': 2**63 + 5}
    texts = [active_node.client.send_goal(goal('Hello', 40, **options)).result(30)[1].text
             for _ in range(2)]
    assert texts[0] == texts[1] == reference('Hello', 40, **options)
    plain = reference('Hello', 40)
    assert texts[0] != plain
    result = active_node.client.send_goal(goal('Hello', 40, stop=[plain[10:13]])).result(30)[1]
    assert result.finish_reason == FinishReason.STOP
    assert result.text == plain[:plain.index(plain[10:13])]


def test_service_and_topic_say_the_same(active_node, reference):
    from flash_llm_msgs.srv import GenerateText

    request = GenerateText.Request(prompt='Hello')
    request.sampling.max_tokens = 128
    response = active_node.client.generate_text(request)
    assert response.error.code == ErrorCode.NONE
    assert response.text == reference('Hello', 128)
    reply = active_node.client.ask('Hello', timeout=30)
    assert (reply.text, reply.finish_reason) == (response.text, FinishReason.LENGTH)
    check_chunks(active_node.client.last_chunks, reply.text, FinishReason.LENGTH)


BAD_GOALS = {
    'empty': ({'prompt': ''}, ErrorCode.EMPTY_PROMPT, 'prompt'),
    'too long': ({'prompt': 'word ' * 600}, ErrorCode.PROMPT_TOO_LONG, 'context_length'),
    'replaced bytes': ({'prompt': 'a\ufffdb'}, ErrorCode.INVALID_TEXT, 'U+FFFD'),
    'temperature': ({'temperature': float('nan')}, ErrorCode.INVALID_SAMPLING,
                    'temperature'),
    'deadline': ({'deadline': float('nan')}, ErrorCode.INVALID_REQUEST, 'deadline'),
    'empty stop': ({'stop': ['']}, ErrorCode.INVALID_REQUEST, 'stop'),
}


@pytest.mark.parametrize('name', BAD_GOALS)
def test_bad_goal_is_aborted_with_its_reason(active_node, name):
    from flash_llm_ros.client.operator import ABORTED

    fields, code, word = BAD_GOALS[name]
    status, result = active_node.client.send_goal(
        goal(**{'prompt': 'Hello', **fields})).result(30)
    assert status == ABORTED
    assert (result.finish_reason, result.error.code) == (FinishReason.ERROR, code)
    assert word in result.error.message
    assert result.text == ''


def cdr_string(data, order='<'):
    return bytes([0, order == '<', 0, 0]) + struct.pack(f'{order}I', len(data)) + data


@pytest.mark.parametrize('data', [b'ab\xffcd\0', b'\xc3(\0', b'\xed\xa0\x80\0', b'ab\0cd\0', b'\0'],
                         ids=['no UTF-8', 'cut character', 'surrogate', 'NUL', 'empty'])
def test_prompt_that_is_no_text_is_refused(active_node, reference, data):
    client = active_node.client
    log = len(active_node.process.log())
    assert client.ask(cdr_string(data), timeout=30).finish_reason == FinishReason.ERROR
    assert client.last_chunks[-1].text == ''
    expected = 'EMPTY_PROMPT' if data == b'\0' else 'INVALID_TEXT'
    client.until(lambda: expected in active_node.process.log()[log:], 10, 'the log')
    assert client.ask('Hello', timeout=30).text == reference('Hello', 128)


def run_until_first_chunk(client, prompt, **fields):
    run = client.send_goal(goal(prompt, LONG, **fields))
    client.until(lambda: run.chunks, 30, 'the first chunk')
    return run


def test_cancel_while_running(active_node, reference):
    from flash_llm_ros.client.operator import CANCELED

    active_node.client._drain()
    run = run_until_first_chunk(active_node.client, 'Hello [piece=0.05]')
    assert run.cancel()
    status, result = run.result(30)
    assert (status, result.finish_reason) == (CANCELED, FinishReason.CANCELLED)
    assert result.error.code == ErrorCode.CANCELLED
    whole = reference('Hello [piece=0.05]', LONG)
    assert result.text and whole.startswith(result.text) and result.text != whole
    check_chunks(streamed(active_node.client, run), result.text, FinishReason.CANCELLED)


def test_cancel_during_a_long_prefill_is_answered_at_once(active_node):
    from flash_llm_ros.client.operator import CANCELED

    client = active_node.client
    run = client.send_goal(goal('Hello [prefill=2]'))
    waiting = client.send_goal(goal('Hello', 5))
    assert run.cancel()
    assert run.result(30)[0] == CANCELED
    assert not waiting.done     # the engine is still in the prefill
    assert len(waiting.result(30)[1].text) == 5


def test_deadline_gives_the_text_so_far(active_node, reference):
    from flash_llm_ros.client.operator import SUCCEEDED

    run = active_node.client.send_goal(goal('Hello [piece=0.05]', LONG, deadline=2.0))
    status, result = run.result(30)
    assert (status, result.finish_reason) == (SUCCEEDED, FinishReason.DEADLINE)
    assert result.error.code == ErrorCode.NONE
    assert result.text and reference('Hello [piece=0.05]', LONG).startswith(result.text)


def test_service_answers_by_its_deadline_and_refuses_a_crowd(active_node):
    from flash_llm_msgs.srv import GenerateText

    client = active_node.client
    requests = []
    for _ in range(3):
        request = GenerateText.Request(prompt='Hello [piece=0.05]', deadline=2.0)
        request.sampling.max_tokens = LONG
        requests.append(client._generate_text.call_async(request))
    client.until(lambda: all(future.done() for future in requests), 30, 'three responses')
    responses = [future.result() for future in requests]
    codes = sorted(response.error.code for response in responses)
    assert codes == [ErrorCode.NONE, ErrorCode.QUEUE_FULL, ErrorCode.DEADLINE]
    texts = [response.text for response in responses if response.error.code == ErrorCode.NONE]
    assert texts[0]


def test_fault_and_bug_end_only_their_request(active_node, reference):
    from flash_llm_ros.client.operator import ABORTED

    client = active_node.client
    for prompt, code in (('Hello [fault]', ErrorCode.READ_FAILED),
                         ('Hello [bug]', ErrorCode.INTERNAL)):
        status, result = client.send_goal(goal(prompt)).result(30)
        assert (status, result.finish_reason) == (ABORTED, FinishReason.ERROR)
        assert result.error.code == code
        assert result.text == reference(prompt, 1)      # the text so far is not lost
    assert client.send_goal(goal('Hello')).result(30)[1].text == reference('Hello')


KILLED_CLIENT = '''
import os, signal, sys
from flash_llm_msgs.action import GenerateText
from flash_llm_ros.client.operator import OperatorClient
client = OperatorClient(domain_id=int(sys.argv[1]))
client.wait_for_node(30.0)
ask = GenerateText.Goal(prompt='Hello [piece=0.05]', deadline=2.0)
ask.sampling.max_tokens = 4000
run = client.send_goal(ask)
client.until(lambda: len(run.chunks) > 2, 30.0, 'chunks')
os.kill(os.getpid(), signal.SIGKILL)
'''


def test_killed_client_leaves_a_live_node(active_node, reference):
    client = active_node.client
    client._drain()
    killed = subprocess.run([sys.executable, '-c', KILLED_CLIENT, str(active_node.domain)],
                            timeout=60)
    assert killed.returncode == -signal.SIGKILL
    # Its request goes on to the deadline, for nothing in ROS tells the node; then the next runs.
    assert client.send_goal(goal('Hello')).result(30)[1].text == reference('Hello')
    reasons = []
    while not client.chunks.empty():
        reasons.append(client.chunks.get().finish_reason)
    assert FinishReason.DEADLINE in reasons


def test_node_answers_while_it_generates(active_node):
    from rcl_interfaces.srv import GetParameters

    client = active_node.client
    service = client.node.create_client(GetParameters, f'{client.name}/get_parameters')
    client.until(service.service_is_ready, 10, 'the parameters')
    run = client.send_goal(goal('Hello [prefill=2]', 3))
    for _ in range(5):
        values = client.call(service, GetParameters.Request(names=['requests.max_tokens'])).values
        assert values[0].integer_value == 128
        assert client.state() == 'active'
    assert not run.done and not run.chunks      # it is still in the prefill
    run.result(30)
    client.node.destroy_client(service)


def test_idle_node_uses_no_cpu(active_node):
    def ticks():
        stat = Path(f'/proc/{active_node.process.pid}/stat').read_text()
        fields = stat.rpartition(')')[2].split()
        return int(fields[11]) + int(fields[12])

    # A goal that waits in a prefill: an executor that polls would take a whole core.
    run = active_node.client.send_goal(goal('Hello [prefill=1.5]', 1))
    before = ticks()
    time.sleep(1.0)
    assert ticks() - before < 50        # of the 100 that a second has
    run.result(30)
