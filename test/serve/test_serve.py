"""`flash_llm serve` as OpenAI's own client sees it, and as those do who mean no good."""

from collections.abc import Iterator
from contextlib import contextmanager
import http.client
import json
import os
from pathlib import Path
import re
import signal
import socket
import subprocess
import sys
import time

import pytest
from ros_fixtures import START_TIMEOUT, RunningNode, running_node

openai = pytest.importorskip('openai')
jsonschema = pytest.importorskip('jsonschema')
pytestmark = pytest.mark.ros
WAIT = 60.0
COMMAND = (sys.executable, '-c',
           'import sys; from flash_llm_ros.cli.main import main; sys.exit(main())', 'serve')
MODEL = 'checkpoint'
HELLO = [{'role': 'user', 'content': 'Hello'}]
SLOWLY = [{'role': 'user', 'content': 'Hello [piece=0.05]'}]
DRIVE = {'type': 'function', 'function': {
    'name': 'drive_to', 'description': 'Drives.', 'strict': True, 'parameters': {
        'type': 'object', 'properties': {'place': {'enum': ['kitchen', 'dock']}},
        'required': ['place'], 'additionalProperties': False}}}
MOST = 2        # requests at once


@pytest.fixture(scope='module')
def node(int8_store: Path) -> Iterator[RunningNode]:
    with running_node(int8_store, structured=True, dram_budget='64MB', name='flash_llm') as node:
        yield node.activate()


@contextmanager
def serving(node: RunningNode, *options: str) -> Iterator[str]:
    """The base URL of a server; it has to end in order, without a traceback."""
    process = subprocess.Popen(
        [*COMMAND, '--port', '0', *options],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, 'ROS_DOMAIN_ID': str(node.domain), 'PYTHONPATH': ':'.join(sys.path)})
    try:
        url = process.stdout.readline().split()[-1]
        limit = time.monotonic() + START_TIMEOUT
        while not asked(url, 'GET', '/models')[1]['data']:
            assert time.monotonic() < limit
            time.sleep(0.05)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=WAIT)
    assert (process.returncode, err) == (0, '')


@pytest.fixture(scope='module')
def url(node: RunningNode) -> Iterator[str]:
    with serving(node, '--max-requests', str(MOST), '--name', 'robot.local') as url:
        yield url


@pytest.fixture(scope='module')
def llm(url: str) -> 'openai.OpenAI':
    return openai.OpenAI(base_url=url, api_key='none', max_retries=0, timeout=WAIT)


def asked(url: str, method: str, path: str, body: object = None,
          **headers: str) -> tuple[int, dict]:
    """The status and the JSON that come back; a body may be anything."""
    host, port = re.fullmatch(r'http://(.*):(\d+)/v1', url).groups()
    connection = http.client.HTTPConnection(host, int(port), timeout=WAIT)
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    connection.request(method, f'/v1{path}', data if body is not None else None, {
        'Content-Type': 'application/json', **{
            name.replace('_', '-'): value for name, value in headers.items()}})
    answer = connection.getresponse()
    found = answer.status, json.loads(answer.read())
    connection.close()
    return found


def chat(url: str, **fields: object) -> tuple[int, dict]:
    return asked(url, 'POST', '/chat/completions',
                 {'model': MODEL, 'messages': HELLO, 'max_tokens': 4, **fields})


def idle(node: RunningNode) -> None:
    status = node.client
    status.until(lambda: status.status.state == status.status.IDLE
                 and not status.status.queue_length, WAIT, 'the end')


def test_whole_and_streamed_say_what_the_node_says(node, llm) -> None:
    from flash_llm_ros.client import FlashLlmClient

    messages = [{'role': 'developer', 'content': 'Be short.'}, *HELLO,
                {'role': 'assistant', 'content': 'Hi.', 'refusal': None, 'tool_calls': None},
                {'role': 'user', 'content': [{'type': 'text', 'text': 'And '},
                                             {'type': 'text', 'text': 'then?'}]}]
    options = {'temperature': 0.8, 'top_p': 0.9, 'seed': -3}
    with FlashLlmClient(domain_id=node.domain) as client:
        right = client.generate(
            messages=[('system', 'Be short.'), ('user', 'Hello'), ('assistant', 'Hi.'),
                      ('user', 'And then?')], **options | {'seed': 2**64 - 3}, max_tokens=20)
    whole = llm.chat.completions.create(
        model=MODEL, messages=messages, max_completion_tokens=20, user='me', n=1, logit_bias={},
        extra_body={'top_k': 0, 'min_p': 0.0}, **options)
    choice, = whole.choices
    assert (choice.message.content, choice.message.role, choice.finish_reason) == (
        right.text, 'assistant', 'length')
    assert (whole.usage.prompt_tokens, whole.usage.completion_tokens, whole.usage.total_tokens) == (
        right.stats.prompt_tokens, 20, right.stats.prompt_tokens + 20)
    chunks = list(llm.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=20, stream=True,
        stream_options={'include_usage': True}, **options))
    assert chunks[0].choices[0].delta.role == 'assistant'
    assert ''.join(chunk.choices[0].delta.content or '' for chunk in chunks[:-1]) == right.text
    assert chunks[-2].choices[0].finish_reason == 'length'
    assert not chunks[-1].choices and chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1
    stopped = llm.chat.completions.create(model=MODEL, messages=messages, max_tokens=20,
                                          stop=right.text[5:7], **options)
    assert (stopped.choices[0].message.content, stopped.choices[0].finish_reason) == (
        right.text[:5], 'stop')
    texts = {llm.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=20,
                                         temperature=1).choices[0].message.content
             for _ in range(3)}
    assert len(texts) > 1       # without a seed, as everywhere with this interface


def test_models(llm) -> None:
    assert [model.id for model in llm.models.list()] == [MODEL]
    assert llm.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError, match=f"'gpt-4' does not exist; there is '{MODEL}'"):
        llm.models.retrieve('gpt-4')
    with pytest.raises(openai.NotFoundError) as wrong:
        llm.chat.completions.create(model='gpt-4', messages=HELLO)
    assert (wrong.value.code, wrong.value.param) == ('model_not_found', 'model')


def test_answers_keep_to_a_schema(llm, node) -> None:
    from pydantic import BaseModel

    class Command(BaseModel):
        speed: int
        turn: bool

    parsed = llm.chat.completions.parse(model=MODEL, messages=HELLO, max_tokens=200,
                                        response_format=Command)
    assert isinstance(parsed.choices[0].message.parsed, Command)
    schema = {'enum': ['left', 'right']}
    form = {'type': 'json_schema', 'json_schema': {'name': 'way', 'schema': schema}}
    answer = llm.chat.completions.create(model=MODEL, messages=HELLO, response_format=form)
    jsonschema.validate(json.loads(answer.choices[0].message.content), schema)
    assert answer.choices[0].finish_reason == 'stop'
    # What had to end before it was complete is no answer, which clients know by the reason.
    with pytest.raises(openai.LengthFinishReasonError):
        llm.chat.completions.parse(model=MODEL, messages=HELLO, max_tokens=2,
                                   response_format=Command)
    form['json_schema']['schema'] = {'type': 'text'}
    with pytest.raises(openai.BadRequestError) as wrong:
        llm.chat.completions.create(model=MODEL, messages=HELLO, response_format=form)
    assert wrong.value.code == 'invalid_constraint'


def test_tools_are_called_and_told_what_came_of_it(llm) -> None:
    ask = {'model': MODEL, 'messages': HELLO, 'max_tokens': 200, 'tools': [DRIVE]}
    for choice in ('required', {'type': 'function', 'function': {'name': 'drive_to'}}):
        whole = llm.chat.completions.create(**ask, tool_choice=choice, seed=1)
        message = whole.choices[0].message
        call, = message.tool_calls
        assert (whole.choices[0].finish_reason, message.content) == ('tool_calls', None)
        assert (call.type, call.function.name) == ('function', 'drive_to')
        jsonschema.validate(json.loads(call.function.arguments),
                            DRIVE['function']['parameters'])
    with llm.chat.completions.stream(**ask, tool_choice='required', seed=1) as stream:
        final = stream.get_final_completion()       # the client puts the chunks together
    streamed, = final.choices[0].message.tool_calls
    assert (streamed.function.name, streamed.function.arguments) == (
        call.function.name, call.function.arguments)
    assert final.choices[0].finish_reason == 'tool_calls'
    bare = {'type': 'function', 'function': {       # as some clients leave things out
        'name': 'stop', 'description': None, 'parameters': None, 'strict': None}}
    stop, = llm.chat.completions.create(**{**ask, 'tools': [bare]}, tool_choice='required'
                                        ).choices[0].message.tool_calls
    assert (stop.function.name, json.loads(stop.function.arguments)) == ('stop', {})
    result = {'role': 'tool', 'tool_call_id': call.id, 'content': '{"ok": true}'}
    after = llm.chat.completions.create(**{
        **ask, 'messages': [*HELLO, message, result]}, tool_choice='none')
    assert after.choices[0].message.content and not after.choices[0].message.tool_calls
    assert after.usage.prompt_tokens > whole.usage.prompt_tokens


@pytest.mark.parametrize(('fields', 'word'), [
    ({'n': 2}, 'n is not supported'), ({'functions': [{}]}, 'functions is not supported'),
    ({'tools': [{'type': 'function'}]}, 'tools holds'), ({'tools': DRIVE}, 'tools is {'),
    ({'tools': [{**DRIVE, 'type': 'custom'}]}, 'tools holds'),
    ({'tools': [DRIVE], 'tool_choice': {}}, 'tool_choice is {}'),
    ({'tools': [DRIVE], 'tool_choice': []}, r'tool_choice is \[\]'),
    ({'tools': [DRIVE], 'tool_choice': {'function': {'name': 'fly'}}}, 'fly'),
    ({'tools': [DRIVE], 'stop': 'x'}, 'stop'), ({'tool_choice': 'required'}, 'no tools'),
    ({'tools': [{'type': 'function', 'function': {'name': 'a b'}}]}, 'name'),
    ({'messages': [{'role': 'tool', 'content': 'x', 'tool_call_id': 'y'}]}, 'id of a call'),
    ({'logprobs': True}, 'logprobs is'), ({'frequency_penalty': 0.5}, 'frequency_penalty'),
    ({'reasoning_effort': 'low'}, 'reasoning_effort'), ({'mirostat': 2}, "'mirostat' is no"),
    ({'temperature': 'hot'}, 'temperature is'), ({'temperature': -1}, 'temperature is -1'),
    ({'max_tokens': 0}, 'max_tokens is 0'), ({'max_tokens': 2**70}, 'max_tokens is'),
    ({'max_completion_tokens': 1.5}, 'max_tokens is 1.5'), ({'seed': 'x'}, "seed is 'x'"),
    ({'stop': 7}, 'stop is 7'), ({'stream': 'yes'}, "stream is 'yes'"), ({'model': 7}, 'model is'),
    ({'messages': []}, 'at least one'), ({'messages': ['Hello']}, r'messages\[0\] is'),
    ({'messages': [{'role': 'king', 'content': 'x'}]}, r"messages\[0\].role is 'king'"),
    ({'messages': [{'role': [], 'content': 'x'}]}, r'messages\[0\].role is'),
    ({'messages': [{'role': 'user', 'content': None}]}, r'messages\[0\].content is None'),
    ({'messages': [{'role': 'user', 'content': [{'type': 'image_url'}]}]}, 'has to be a text'),
    ({'messages': [{'role': 'assistant', 'tool_calls': [{}]}]}, r'tool_calls holds \{\}'),
    ({'messages': [{'role': 'assistant', 'tool_calls': 3}]}, 'tool_calls is 3'),
    ({'messages': [{'role': 'user', 'content': 'a\ud800'}]}, 'not valid UTF-8'),
    ({'messages': [{'role': 'user', 'content': 'a\0'}]}, 'NUL'),
    ({'messages': [{'role': 'user', 'content': 'x' * 10**5}]}, '100000 characters|context'),
    ({'response_format': {'type': 'yaml'}}, 'response_format is'),
    ({'response_format': {'type': 'json_schema', 'json_schema': 3}}, 'response_format is'),
    ({'tools': [{'type': 'function', 'function': {'name': 'a', 'description': 7}}]}, 'description'),
    ({'stream_options': 3}, 'stream_options is 3'), ({'a\ud800' * 99: 1}, 'is no parameter'),
])
def test_what_cannot_be_done_is_said(url: str, fields: dict, word: str) -> None:
    status, answer = chat(url, **fields)
    error = answer['error']
    assert status == 400 and re.search(word, error['message']), answer
    assert error['type'] == 'invalid_request_error' and len(error['message']) < 4500


def test_what_changes_no_answer_is_ignored(url: str) -> None:
    status, _ = chat(url, user='me', metadata={'a': 'b'}, store=True, service_tier='auto',
                     parallel_tool_calls=False, tools=None, tool_choice='auto', logit_bias={})
    assert status == 200


def test_a_client_that_leaves_cancels_its_request(node, url, llm) -> None:
    idle(node)
    before = node.client.status.requests_cancelled
    stream = llm.chat.completions.create(model=MODEL, messages=SLOWLY, max_tokens=4000, stream=True)
    while not next(stream).choices[0].delta.content:
        pass
    stream.close()
    idle(node)
    # So does one that has not got anything yet.
    with pytest.raises(openai.APITimeoutError):
        llm.chat.completions.create(model=MODEL, messages=SLOWLY, max_tokens=4000, timeout=1.0)
    idle(node)
    node.client.until(lambda: node.client.status.requests_cancelled == before + 2, WAIT, 'cancels')


def test_no_more_than_so_many_at_once(node, url, llm) -> None:
    streams = [llm.chat.completions.create(model=MODEL, messages=SLOWLY, max_tokens=400,
                                           stream=True) for _ in range(MOST - 1)]
    half = socket.create_connection(re.search(r'//(.*):(\d+)', url).groups(), timeout=WAIT)
    half.sendall(b'POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n'
                 b'Content-Type: application/json\r\n\r\n{')   # one that does not go on counts, too
    limit, status = time.monotonic() + WAIT, 200
    while status == 200:
        assert time.monotonic() < limit
        status, answer = asked(url, 'GET', '/models')
    assert status == 429 and answer['error']['code'] == 'too_many_requests'
    half.close()
    for stream in streams:
        stream.close()
    idle(node)
    while asked(url, 'GET', '/models')[0] != 200:
        assert time.monotonic() < limit


def test_what_goes_wrong_within_an_answer(llm) -> None:
    fault = [{'role': 'user', 'content': 'Hello [fault]'}]
    with pytest.raises(openai.InternalServerError, match='failed twice') as wrong:
        llm.chat.completions.create(model=MODEL, messages=fault)
    assert wrong.value.code == 'read_failed'
    stream = llm.chat.completions.create(model=MODEL, messages=fault, stream=True)
    with pytest.raises(openai.APIError, match='failed twice'):
        list(stream)


@pytest.mark.parametrize(('status', 'body', 'headers'), [
    (403, {}, {'Host': 'evil.example:8080'}), (403, {}, {'Host': ''}), (403, {}, {'Host': '['}),
    (403, {}, {'Origin': 'http://evil.example'}), (403, {}, {'Origin': 'null'}),
    (403, {}, {'Origin': 'http://['}), (403, {}, {'Origin': 'http://\u2100.x'.encode()}),
    (415, {}, {'Content_Type': 'text/plain'}), (415, {}, {'Content_Encoding': 'gzip'}),
    (413, b'x' * (2**20 + 1), {}), (400, b'{"model"', {}), (400, b'\xff', {}), (400, b'[1]', {}),
    (400, b'[' * 10**6, {}), (400, b'{"seed":' + b'9' * 10**5 + b'}', {}),
    (400, {'temperature': float('nan'), 'messages': HELLO, 'model': MODEL}, {}),
    (400, {'messages': HELLO, 'model': MODEL}, {'Host': 'robot.local', 'X_A': '1'}),
])
def test_what_means_no_good_is_refused(url, status: int, body: object, headers: dict) -> None:
    if headers.get('Host') == 'robot.local':        # but a name that was given is served
        body, status = {**body, 'max_tokens': 1}, 200
    found, answer = asked(url, 'POST', '/chat/completions', body, **headers)
    assert found == status, answer
    assert status == 200 or answer['error']['message']


def test_other_ways(url: str) -> None:
    assert asked(url, 'GET', '/embeddings')[0] == 404
    assert asked(url, 'GET', '/chat/completions')[0] == 405
    assert asked(url, 'GET', '/../../etc/passwd')[0] == 404


def test_a_fleet_answers(node) -> None:
    with serving(node, '--fleet') as url:
        status, answer = chat(url)
        assert status == 200 and answer['usage']['completion_tokens'] == 4
        assert chat(url, model='gpt-4')[0] == 404


def test_a_node_that_is_not_active(node, url, llm) -> None:
    assert node.client.transition('deactivate')
    limit = time.monotonic() + WAIT
    while asked(url, 'GET', '/models')[1]['data']:
        assert time.monotonic() < limit
    with pytest.raises(openai.InternalServerError) as wrong:
        llm.chat.completions.create(model=MODEL, messages=HELLO)
    assert (wrong.value.status_code, wrong.value.code) == (503, 'not_active')
    assert node.client.transition('activate')


def test_it_cannot_listen(capsys, monkeypatch, node) -> None:
    from flash_llm_ros.cli.main import main

    monkeypatch.setenv('ROS_DOMAIN_ID', str(node.domain))
    with socket.create_server(('127.0.0.1', 0)) as taken:
        assert main(['serve', '--port', str(taken.getsockname()[1])]) == 1
    assert 'address already in use' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(['serve', '--host', 'everywhere'])
