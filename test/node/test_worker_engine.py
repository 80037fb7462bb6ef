"""The worker on a real engine: what is computed behind a cancel or a higher priority, counted."""

from generation_cases import KINDS, opened
import pytest
from scripted_engine import SETTINGS, Listener

from flash_llm_ros.engine import FinishReason, GenerationRequest, SamplingParams
from flash_llm_ros.node.work.request import Request
from flash_llm_ros.node.work.worker import Worker
from flash_llm_ros.store.errors import ErrorCode

CHUNK = 16
LONG_PROMPT = 'The robot drives along the wall of the hall. ' * 5       # a token a byte
SAMPLING = SamplingParams(temperature=0.7, top_k=50, seed=3)


class Passes:
    """The passes through the model: how many tokens each, and what to do in one of them."""

    def __init__(self, model):
        self.tokens, self.during = [], {}
        self._forward = model.forward
        model.forward = self

    def __call__(self, tokens, *arguments, **options):
        self.tokens.append([int(token) for token in tokens])
        act = self.during.pop(len(self.tokens), None)
        if act is not None:
            act()
        self._forward(tokens, *arguments, **options)


@pytest.fixture(params=KINDS)
def worker(request, stores):
    engine = opened(stores[request.param], mode=KINDS[request.param], prefill_chunk=CHUNK,
                    lookup_tokens=0)
    bugs = []
    worker = Worker(engine, {**SETTINGS, 'requests.queue_size': 5}, bugs.append)
    worker.passes = Passes(engine.model)
    worker.activate()
    yield worker
    worker.close('over')
    assert not bugs


def prepared(prompt, max_tokens=20, **options):
    listener = Listener()
    generation = GenerationRequest(prompt, raw=True, max_tokens=max_tokens, sampling=SAMPLING)
    return Request(prompt, generation, [listener], stream_period=0.0, **options), listener


def alone(worker, prompt, max_tokens=20):
    """The outcome of a request that nobody disturbs, and how many passes it takes."""
    before = len(worker.passes.tokens)
    request, listener = prepared(prompt, max_tokens)
    worker.submit(request)
    outcome = listener.outcome()
    passes = len(worker.passes.tokens) - before
    worker.passes.tokens.clear()
    return outcome, passes


IN_PREFILL, IN_DECODE = 3, len(LONG_PROMPT) // CHUNK + 6


@pytest.mark.parametrize('place', [IN_PREFILL, IN_DECODE])
def test_nothing_is_computed_behind_a_cancel(worker, place):
    whole, passes = alone(worker, LONG_PROMPT)
    assert place < passes - 3
    request, listener = prepared(LONG_PROMPT)
    worker.passes.during[place] = lambda: request.cancel('not wanted')
    worker.submit(request)
    outcome = listener.outcome()
    assert outcome.finish_reason == FinishReason.CANCELLED
    assert whole.text.startswith(outcome.text) and outcome.text != whole.text
    worker.deactivate('over')           # returns when the engine rests
    assert len(worker.passes.tokens) == place


@pytest.mark.parametrize('place', [IN_PREFILL, IN_DECODE])
def test_a_higher_priority_has_the_next_pass(worker, place):
    whole, passes = alone(worker, LONG_PROMPT)
    urgent_alone, urgent_passes = alone(worker, 'Stop!', 7)
    low, low_listener = prepared(LONG_PROMPT)
    high, high_listener = prepared('Stop!', 7, priority=101)
    worker.passes.during[place] = lambda: worker.submit(high)
    worker.submit(low)
    assert low_listener.outcome().text == whole.text
    assert high_listener.outcome().text == urgent_alone.text
    assert low_listener.outcome().preemptions == 1
    assert worker.passes.tokens[place] == worker.engine.tokenize('Stop!')
    assert len(worker.passes.tokens) == passes + urgent_passes      # nothing is computed twice
    for listener in (low_listener, high_listener):
        listener.check()


def test_interrupted_again_and_again(worker):
    """A higher one at every pass, and higher ones in those: every text is as if it were alone."""
    lengths = {'low one': 30, 'mid': 9, 'high': 4}
    texts = {prompt: alone(worker, prompt, length)[0].text for prompt, length in lengths.items()}
    listeners = []

    def send(prompt, priority):
        request, listener = prepared(prompt, lengths[prompt], priority=priority)
        listeners.append((prompt, listener))
        worker.submit(request)

    for place in range(2, 130, 14):
        worker.passes.during[place] = lambda: send('mid', 110)
    for place in range(5, 130, 31):
        worker.passes.during[place] = lambda: send('high', 120)
    worker._settings['requests.queue_size'] = 100
    send('low one', 100)
    listeners[0][1].outcome()
    for prompt, listener in listeners:
        assert listener.outcome().text == texts[prompt]
        listener.check()
    assert listeners[0][1].outcome().preemptions > 3
    assert any(listener.outcome().preemptions for prompt, listener in listeners if prompt == 'mid')


def test_deadline_while_set_aside_keeps_the_text(worker):
    whole, _ = alone(worker, LONG_PROMPT)
    low, low_listener = prepared(LONG_PROMPT, deadline=3600)
    high, high_listener = prepared('Stop!', 7, priority=101)
    worker.passes.during[IN_DECODE] = lambda: worker.submit(high)
    worker.passes.during[IN_DECODE + 3] = low._expire
    worker.submit(low)
    outcome = low_listener.outcome()
    assert (outcome.finish_reason, outcome.error) == (FinishReason.DEADLINE, None)
    assert outcome.text and whole.text.startswith(outcome.text)
    assert high_listener.outcome().finish_reason == FinishReason.LENGTH
    late, late_listener = prepared('late', deadline=3600)
    worker.passes.during[len(worker.passes.tokens) + 1] = late._expire
    worker.submit(late)
    assert late_listener.outcome().error.code == ErrorCode.DEADLINE


def test_fewer_threads_say_the_same(int8_store):
    """The number changes with every token."""
    texts = []
    for change in (False, True):
        engine = opened(int8_store, threads=4, prefill_chunk=CHUNK)
        settings = dict(SETTINGS)
        worker = Worker(engine, settings, lambda error: None)
        worker.activate()
        request, listener = prepared(LONG_PROMPT, 40)
        passes = Passes(engine.model)
        seen = set()

        def next_number(settings=settings, engine=engine, seen=seen, change=change):
            seen.add(engine.threads)
            threads = settings['compute.max_threads'] % 5 + 1 if change else 256
            settings['compute.max_threads'] = threads

        passes.during = dict.fromkeys(range(1, 100), next_number)
        worker.submit(request)
        texts.append(listener.outcome().text)
        assert seen == ({1, 2, 3, 4} if change else {4})
        worker.close('over')
    assert texts[0] == texts[1] and len(texts[0]) == 40
