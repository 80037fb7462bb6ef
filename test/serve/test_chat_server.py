"""The HTTP server by itself: clients that leave, nodes that do, what is no HTTP."""

import asyncio
from collections.abc import Callable
import http.client
import json
import re
import socket
import struct
import threading
import time

import pytest

pytest.importorskip('aiohttp')
pytestmark = pytest.mark.ros
WAIT = 60.0
MODEL = 'checkpoint'
HELLO = [{'role': 'user', 'content': 'Hello'}]


@pytest.mark.parametrize(('code', 'status'), [
    ('QUEUE_FULL', 429), ('REPLACED', 409), ('PROMPT_TOO_LONG', 400), ('DEADLINE', 504),
    ('CANCELLED', 503), ('CHECKSUM_MISMATCH', 500), ('INTERNAL', 500)])
def test_codes_of_the_node_have_a_status(code: str, status: int) -> None:
    from flash_llm_ros.client import Answer, AnswerError, ErrorCode, FinishReason
    from flash_llm_ros.serve.api_error import from_outcome

    error = from_outcome(AnswerError(ErrorCode[code], 'No.', Answer('', FinishReason.ERROR)))
    assert (error.status, error.body['error']['message']) == (status, 'No.')


def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch) -> None:
    from flash_llm_ros.serve import server

    monkeypatch.setattr(server, 'READ_TIMEOUT', 0.1)

    async def ask() -> bytes:
        chats = server.ChatServer(None, lambda: [MODEL], server.Limits())
        async with chats.listening('127.0.0.1', 0) as url:
            reader, writer = await asyncio.open_connection(*re.search(
                r'//(.*):(\d+)', url).groups())
            writer.write(b'POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n'
                         b'Content-Type: application/json\r\nContent-Length: 99\r\n\r\n{')
            line = await reader.readline()
            writer.close()
            return line

    assert asyncio.run(ask()).split()[1] == b'408'


def until(condition: Callable[[], bool]) -> None:
    limit = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.01)


class Endless:
    """Answers that go on until they are cancelled."""

    def __init__(self) -> None:
        self.under_way = 0

    def start(self, model: str, on_text: object, on_done: object, **options: object) -> object:
        from flash_llm_ros.client import Answer, FinishReason, PendingAnswer

        ended = threading.Event()
        pending = PendingAnswer(lambda: None, lambda pending: ended.set(), print, on_text, on_done)

        def say() -> None:
            while not ended.is_set():
                pending.add('x' * 10_000)
                time.sleep(0.001)
            pending.complete(Answer('', FinishReason.CANCELLED))
            self.under_way -= 1

        self.under_way += 1
        threading.Thread(target=say).start()
        return pending


@pytest.mark.parametrize('way', ['reset', 'does not read'])
def test_a_client_that_is_gone_is_no_news(monkeypatch, caplog, way: str) -> None:
    """Wherever in an answer it leaves, and where it only seems to be there."""
    from flash_llm_ros.serve import server

    monkeypatch.setattr(server, 'WRITE_TIMEOUT', 0.1)
    body = json.dumps({'model': MODEL, 'messages': HELLO, 'stream': True}).encode()
    head = (b'POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n'
            b'Content-Type: application/json\r\n\r\n' % len(body))

    def visit(port: int, seconds: float) -> None:
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(('127.0.0.1', port))
            client.sendall(head + body)
            if way == 'reset':
                time.sleep(seconds)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
            else:
                client.recv(1)
                until(lambda: not answers.under_way)

    def send(port: int, wrong: bytes) -> tuple[int, bytes]:
        with socket.create_connection(('127.0.0.1', port), timeout=WAIT) as client:
            client.sendall(wrong)
            answer = http.client.HTTPResponse(client)
            answer.begin()
            return answer.status, answer.read()

    async def serve() -> None:
        async with chats.listening('127.0.0.1', 0) as url:
            port = int(re.search(r':(\d+)/', url)[1])
            for number in range(30 if way == 'reset' else 1):
                await asyncio.to_thread(visit, port, number % 10 / 1000)
            await asyncio.to_thread(until, lambda: not answers.under_way)
            for wrong in (b'GET\r\n\r\n', head.replace(b'Host', b'X'), b'\x16\x03\x01' * 9,
                          b'GET / HTTP/1.1\r\nA: ' + b'x' * 10_000 + b'\r\n\r\n'):
                status, told = await asyncio.to_thread(send, port, wrong)
                assert status in (400, 403)     # who misses a Host depends on aiohttp
                assert json.loads(told)['error']['type'] == 'invalid_request_error'

    answers = Endless()
    chats = server.ChatServer(answers.start, lambda: [MODEL], server.Limits(requests=40))
    asyncio.run(serve())
    assert not caplog.records


class Silent:
    """An answer that has begun and does not go on; nobody hears that it is cancelled."""

    def __init__(self) -> None:
        self.pending: object = None
        self.cancelled: list[object] = []
        self.failures: list[object] = []

    def start(self, model: str, on_text: object, on_done: object, **options: object) -> object:
        from flash_llm_ros.client import PendingAnswer

        self.pending = PendingAnswer(lambda: None, self.cancelled.append,
                                     lambda *what: self.failures.append(what), on_text, on_done)
        self.pending.add('xxx')
        return self.pending


@pytest.mark.parametrize('stream', [True, False])
def test_a_node_that_says_nothing_any_more_is_not_waited_for(monkeypatch, stream: bool) -> None:
    """It was killed within its answer, which DDS does not tell."""
    from flash_llm_ros.serve import server

    monkeypatch.setattr(server, 'LOOK', 0.05)

    async def serve() -> None:
        async with chats.listening('127.0.0.1', 0) as url:
            asking = asyncio.create_task(asyncio.to_thread(ask, url))
            await asyncio.to_thread(until, lambda: answers.pending)
            await asyncio.sleep(1)      # as long as it is there, it may take its time
            assert not asking.done()
            there.clear()
            status, body = await asking
            assert status == (200 if stream else 503)
            assert '"code": "node_lost"' in body and '[DONE]' not in body
            assert ('xxx' in body) == stream
            assert answers.cancelled == [answers.pending]

    def ask(url: str) -> tuple[int, str]:
        connection = http.client.HTTPConnection(url[7:-3], timeout=WAIT)
        connection.request('POST', '/v1/chat/completions', json.dumps(
            {'model': MODEL, 'messages': HELLO, 'stream': stream}),
            {'Content-Type': 'application/json'})
        answer = connection.getresponse()
        return answer.status, answer.read().decode()

    answers, there = Silent(), [MODEL]
    chats = server.ChatServer(answers.start, lambda: list(there), server.Limits())
    asyncio.run(serve())
    answers.pending.lose('The client was closed.')      # when the server has ended
    assert answers.failures == []
