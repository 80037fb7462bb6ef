"""An engine that says the words of its prompt, and a listener: the worker's tests without ROS."""

import threading

from flash_llm_ros.engine import FinishReason, GenerationCost, GenerationRequest
from flash_llm_ros.node.work.request import Request
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError, ReadFailedError

TIMEOUT = 10
LONGEST = 1000      # characters of a prompt
SETTINGS = {'requests.queue_size': 2, 'requests.when_busy': 'queue', 'compute.duty_cycle': 1.0,
            'compute.max_threads': 256}


class Panic(BaseException):
    """As libraries in Rust raise them."""


class ScriptedGeneration:
    """Yields the words of its prompt; '<gate>' waits for the engine's gate."""

    tool_calls = ()

    def __init__(self, engine, prompt):
        self._engine = engine
        self._words = prompt.split()
        self._asked = None
        self.stats = GenerationCost(prompt_tokens=len(self._words), seed=0)
        self.phase = 'prefill'
        self.finish_reason = FinishReason.RUNNING

    def stop(self, reason):
        self._asked = reason

    def __iter__(self):
        for number, word in enumerate(self._words):
            assert self._engine.running is self
            if word == '<gate>':
                self._engine.at_gate.set()
                assert self._engine.gate.wait(TIMEOUT)
                self._engine.gate.clear()
                self._engine.gates_passed += 1
            elif word == '<fault>':
                raise ReadFailedError('no flash')
            elif word == '<bug>':
                raise ZeroDivisionError('planted')
            elif word == '<panic>':
                raise Panic('planted')
            if self._asked is not None:
                self.finish_reason = self._asked
                return
            self.phase = 'decode'
            self.stats.generated_tokens += 1
            self._engine.said.append(word)
            if number + 1 == len(self._words):
                self.finish_reason = FinishReason.STOP
            yield word


class ScriptedEngine:
    """`said` has every word in the order of its computation."""

    def __init__(self):
        self.gate, self.at_gate = threading.Event(), threading.Event()
        self.gates_passed = 0
        self.served, self.said, self.threads, self.limits = [], [], set(), []
        self.running, self.suspended, self.closed = None, [], False
        self.suspend_error = self.resume_error = self.discard_error = None

    def check(self, request):
        if len(request.prompt) > LONGEST:
            raise FlashLlmError(ErrorCode.PROMPT_TOO_LONG, 'long')

    def start(self, request):
        self.threads.add(threading.get_ident())
        self.served.append(request.prompt)
        if request.prompt == '':
            raise FlashLlmError(ErrorCode.EMPTY_PROMPT, 'empty')
        self.running = ScriptedGeneration(self, request.prompt)
        return self.running

    def suspend(self):
        if self.suspend_error is not None:
            raise self.suspend_error
        self.suspended.append(self.running)
        return self.running

    def resume(self, suspended):
        self.suspended.remove(suspended)
        if self.resume_error is not None:
            raise self.resume_error
        self.running = suspended

    def discard(self, suspended):
        self.suspended.remove(suspended)
        if self.discard_error is not None:
            raise self.discard_error

    def limit_threads(self, most):
        self.limits.append(most)

    def stats(self):
        return {'flash_bytes': len(self.served)}

    def close(self):
        assert not self.suspended
        self.closed = True


class Listener:
    """Keeps what an outlet is told."""

    def __init__(self):
        self.events, self.chunks, self.outcomes = [], [], []
        self.ended = threading.Event()

    def started(self):
        self.events.append('started')

    def chunk(self, chunk):
        self.events.append('chunk')
        self.chunks.append(chunk)

    def done(self, outcome):
        self.events.append('done')
        self.outcomes.append(outcome)
        self.ended.set()

    def outcome(self):
        assert self.ended.wait(TIMEOUT)
        return self.outcomes[0]

    def check(self):
        """Hold what is promised of every request, however it ends."""
        assert self.events.count('done') == 1 and self.events[-1] == 'done'
        assert self.events.count('started') <= 1
        assert 'started' not in self.events[1:]
        assert [chunk.sequence for chunk in self.chunks] == list(range(len(self.chunks)))
        assert ''.join(chunk.text for chunk in self.chunks) == self.outcomes[0].text
        reasons = [chunk.finish_reason for chunk in self.chunks]
        assert reasons[:-1] == [FinishReason.RUNNING] * (len(reasons) - 1)
        assert reasons[-1] == self.outcomes[0].finish_reason


def send(worker, prompt, priority=100, **options):
    """Hand a worker a request that is streamed word by word; it and what hears of it."""
    listener = Listener()
    request = Request(prompt, GenerationRequest(prompt), [listener], priority=priority,
                      **{'stream_period': 0.0, **options})
    worker.submit(request)
    return request, listener
