"""The HTTP server: who may ask, how much at once, and what becomes of a client that leaves."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass
import ipaddress
import json
import logging
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from flash_llm_ros.client import PendingAnswer
from flash_llm_ros.serve.api_error import INVALID, ApiError, from_outcome, invalid
from flash_llm_ros.serve.chat_answer import ChatAnswer, answer_of
from flash_llm_ros.serve.chat_request import ChatRequest, chat_request

LARGEST = 2**20         # B of a body
READ_TIMEOUT = 30.0     # s in which a body has to be here
KEEP_ALIVE = 30.0       # s that a connection may wait for its next request
WRITE_TIMEOUT = 30.0    # s in which a client has to read what is sent
SHUTDOWN = 2.0          # s that answers have which are under way at the end
LOOK = 1.0              # s between two looks at whether there is anybody to wait for
ABSENT = 3              # looks at which no node had the model, after which no answer will come
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
log = logging.getLogger(__name__)
# Of what is no HTTP: anybody could fill the log with it.
_silent = logging.getLogger(f'{__name__}.http')
_silent.setLevel(logging.CRITICAL)


@dataclass(frozen=True)
class Limits:
    """What clients may do."""

    names: tuple[str, ...] = ()     # in the Host header, beside addresses and localhost
    requests: int = 8               # at once
    deadline: float = 0.0           # s; 0: the node's


class ChatServer:
    """Chat completions by a client of one node or several."""

    def __init__(self, start: Callable[..., PendingAnswer], models: Callable[[], list[str]],
                 limits: Limits) -> None:
        """``start`` is called with a ``model`` and options of ``make_goal``; ``models``: of now."""
        self._start = start
        self._names = models
        self._limits = limits
        self._under_way = 0

    @asynccontextmanager
    async def listening(self, host: str, port: int) -> AsyncIterator[str]:
        """Serve while the context lasts; yields the base URL. OSError where it cannot listen."""
        app = web.Application(middlewares=[self._guard], client_max_size=LARGEST)
        app.add_routes([web.post('/v1/chat/completions', self._chat),
                        web.get('/v1/models', self._models),
                        web.get('/v1/models/{name:.+}', self._one_model)])
        runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=SHUTDOWN)
        await runner.setup()
        loop = asyncio.get_running_loop()
        try:
            with closing(await loop.create_server(
                    lambda: _Connection(runner.server, loop), host, port)) as listener:
                name, number, *_ = listener.sockets[0].getsockname()
                yield f'http://{f"[{name}]" if ":" in name else name}:{number}/v1'
        finally:
            await runner.cleanup()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Whatever goes wrong before an answer has begun is told as OpenAI's interface does."""
        self._under_way += 1
        try:
            check_origin(request.headers, self._limits.names)
            if self._under_way > self._limits.requests:
                raise ApiError(429, 'rate_limit_error', f'{self._limits.requests} requests are '
                               'under way, which is all that this server allows; ask again later.',
                               code='too_many_requests')
            return await handler(request)
        except ApiError as error:
            return _refusal(error)
        except web.HTTPException as error:
            return _refusal(ApiError(error.status, INVALID, {
                404: f'There is nothing at {request.path}.',
                405: f'{request.path} takes no {request.method}.',
                413: f'The body has more than {LARGEST} bytes.'}.get(error.status, error.reason)))
        except ConnectionError:     # the client has left, or does not read
            return web.Response()
        except Exception:
            log.exception('a request failed')
            return _refusal(ApiError(500, 'server_error', 'This is a bug: please report it.'))
        finally:
            self._under_way -= 1

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({'object': 'list', 'data': list(map(_model, self._names()))})

    async def _one_model(self, request: web.Request) -> web.Response:
        name = request.match_info['name']
        self._check_model(name)
        return web.json_response(_model(name))

    def _check_model(self, name: str) -> None:
        there = self._names()
        if not there:
            raise ApiError(503, 'server_error', 'No node is there and active.', code='not_active')
        if name not in there:
            raise ApiError(404, INVALID, f'The model {name!r} does not exist; there is '
                           f'{", ".join(map(repr, there))}.', param='model', code='model_not_found')

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        asked = chat_request(await _body(request))
        self._check_model(asked.model)
        answer = ChatAnswer(asked.model)
        loop, events = asyncio.get_running_loop(), asyncio.Queue()

        def tell(text: str | None) -> None:
            with suppress(RuntimeError):    # the server has ended; nobody waits for it
                loop.call_soon_threadsafe(events.put_nowait, text)

        try:
            pending = self._start(
                model=asked.model, **asked.options, deadline=self._limits.deadline, on_text=tell,
                on_done=lambda pending: tell(None))
        except (RuntimeError, ValueError) as error:
            raise from_outcome(error) from None
        def more() -> Awaitable[str | None]:
            return self._more(asked.model, events)

        try:
            if asked.stream:
                return await _stream(request, asked, answer, pending, more)
            while await more() is not None:
                pass
            return web.json_response(answer.whole(*answer_of(pending)))
        finally:
            # Also where the client has left, which cancels this call.
            pending.cancel()


    async def _more(self, model: str, events: 'asyncio.Queue[str | None]') -> str | None:
        """Return an answer's next text, None at its end; ApiError where nobody is there to give it.

        DDS misses a node that was killed after 20 s; its ~/status is missed sooner.
        """
        absent = 0
        while True:
            try:
                return await asyncio.wait_for(events.get(), LOOK)
            except asyncio.TimeoutError:
                absent = 0 if model in self._names() else absent + 1
                if absent == ABSENT:
                    raise ApiError(503, 'server_error', 'The node has left before it answered, or '
                                   'says nothing any more.', code='node_lost') from None


class _Connection(web.RequestHandler):
    """Tells of what is no HTTP, too, as OpenAI's interface does."""

    def __init__(self, server: web.Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(server, loop=loop, auto_decompress=False, access_log=None,
                         keepalive_timeout=KEEP_ALIVE, logger=_silent)

    def handle_error(self, request: web.BaseRequest, status: int = 500,
                     exc: BaseException | None = None, message: str | None = None,
                     ) -> web.StreamResponse:
        super().handle_error(request, status, exc, message)
        response = _refusal(ApiError(status, INVALID, 'This is no request of HTTP: '
                                     f'{" ".join((message or str(exc)).split())}'))
        response.force_close()
        return response


async def _stream(
    request: web.Request, asked: ChatRequest, answer: ChatAnswer, pending: PendingAnswer,
    more: Callable[[], Awaitable[str | None]],
) -> web.StreamResponse:
    """Send server-sent events. Before the first of them an error still has a status of its own."""
    text = await more()
    if text is None:
        answer_of(pending)
    response = web.StreamResponse(headers={
        'Content-Type': 'text/event-stream', 'Cache-Control': 'no-cache'})
    await response.prepare(request)

    async def send(event: Any) -> None:
        await in_time(response.write(b'data: ' + json.dumps(event).encode() + b'\n\n'))

    async def in_time(writing: Awaitable[None]) -> None:
        try:
            await asyncio.wait_for(writing, WRITE_TIMEOUT)
        except asyncio.TimeoutError:
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionError from None

    await send(answer.chunk({'role': 'assistant', 'content': ''}))
    try:
        while text is not None:
            await send(answer.chunk({'content': text}))
            text = await more()
        end, reason = answer_of(pending)
    except ApiError as error:
        await send(error.body)
    else:
        if end.tool_calls:
            await send(answer.calls_chunk(end))
        await send(answer.chunk({}, reason))
        if asked.include_usage:
            await send(answer.usage_chunk(end))
        await in_time(response.write(b'data: [DONE]\n\n'))
    await in_time(response.write_eof())
    return response


async def _body(request: web.Request) -> Any:
    """Return the JSON of a body. Any other type a web page could send without being asked."""
    if request.content_type != 'application/json':
        raise ApiError(415, INVALID, 'Content-Type has to be application/json.')
    if request.headers.get('Content-Encoding', 'identity') != 'identity':
        raise ApiError(415, INVALID, 'Content-Encoding has to be left out.')
    reading = asyncio.ensure_future(request.read())
    try:
        if not (await asyncio.wait([reading], timeout=READ_TIMEOUT))[0]:
            raise ApiError(408, INVALID, f'The body was not here within {READ_TIMEOUT:g} s.')
    finally:
        reading.cancel()
    try:
        return json.loads(reading.result())
    except (RecursionError, ValueError) as error:
        raise invalid(f'The body is no JSON: {error}.') from None


def check_origin(headers: Any, names: Iterable[str]) -> None:
    """Refuse what a web page in a browser on this machine may have been made to send.

    A page can point a name of its own at this machine (DNS rebinding), but no address; and a
    browser says in Origin which page has sent something. ApiError 403.
    """
    host = _host_name(headers.get('Host', ''))
    if host not in ('localhost', *names) and not _is_address(host):
        raise ApiError(403, INVALID, f'The host {host!r} is not served; ask by address, by '
                       'localhost, or start the server with --name.')
    origin = headers.get('Origin')
    if origin is not None and origin.partition('://')[2] != headers['Host']:
        raise ApiError(403, INVALID, f'Pages of {origin!r} may not ask here.')


def _host_name(host: str) -> str:
    try:
        return urlsplit(f'//{host}').hostname or ''
    except ValueError:
        return ''


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _model(name: str) -> dict[str, Any]:
    return {'id': name, 'object': 'model', 'created': 0, 'owned_by': 'flash_llm'}


def _refusal(error: ApiError) -> web.Response:
    headers = {'Retry-After': '1'} if error.status in (429, 503) else {}
    return web.json_response(error.body, status=error.status, headers=headers)
