"""The process of our engine that bench.experts.shape measures: prompts, then tokens, JSON out."""

import json
from pathlib import Path
import sys
import time
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.experts.planted_routing import planted_routing
from bench.support.process_figures import cpu_seconds, peak_resident_bytes, resident_bytes
from bench.window.replayer import at_best
from bench.window.trace import NeuronTrace, Recorder
from flash_llm_ros.engine import Engine, EngineConfig
from flash_llm_ros.engine.memory.window_plan import groups_streamed
from flash_llm_ros.engine.model.feed_forward.block import Array
from flash_llm_ros.engine.model.feed_forward.routers import Routers
from flash_llm_ros.engine.model.model import Model
from flash_llm_ros.store.errors import FlashLlmError
from flash_llm_ros.store.geometry import EXPERT_SECTIONS


class PlantedRouting:
    """In place of an engine's predictors and routers, which are asked for weights alone."""

    def __init__(self, routers: Routers, used: NDArray[np.bool_], recall: float) -> None:
        """`used`: bool [tokens, layers, experts], over and over; `recall`: what is foreseen of it,
        the rest of which is what other tokens use."""
        self._routers, self._recall, self._next = routers, recall, 0
        self._ids = np.nonzero(used)[2].reshape(*used.shape[:2], -1)
        self._random = np.random.default_rng(2)

    def choose(self, layer: int, x: Array) -> tuple[NDArray[np.int64], Array]:
        _, weights = self._routers.choose(layer, x)
        ids = self._ids[self._tokens(x), layer]
        if layer == self._ids.shape[1] - 1:
            self._next += len(x)
        return ids, weights

    def likely(self, layer: int, x: Array) -> NDArray[np.int64]:
        ids = self._ids[self._tokens(x), layer + 1]
        others = self._random.permutation(self._ids[:, layer + 1])[:len(x)]
        return np.where(self._random.random(ids.shape) < self._recall, ids, others)

    def _tokens(self, x: Array) -> NDArray[np.int64]:
        return np.arange(self._next, self._next + len(x)) % len(self._ids)


def prompt_seconds(model: Model, tokens: list[int]) -> float:
    """Of a prompt, with the choice of the first token of an answer."""
    begin = time.perf_counter()
    for start in range(0, len(tokens), model.chunk):
        part = np.array(tokens[start:start + model.chunk])
        last = start + len(part) == len(tokens)
        model.forward(part, start, True, model.logits if last else None)
    return time.perf_counter() - begin


def generated(model: Model, position: int, tokens: list[int]) -> list[float]:
    """Seconds of each. What a random model chooses would come back to the same tokens."""
    seconds = []
    for place, token in enumerate(tokens, position):
        begin = time.perf_counter()
        model.forward(np.array([token]), place, False, model.logits)
        model.logits[0].argmax()
        seconds.append(time.perf_counter() - begin)
    return seconds


def measured(engine: Engine, job: dict[str, Any]) -> dict[str, Any]:
    """Of the second half of the tokens; the first fills the window."""
    model, spec, half = engine.model, engine.model.spec, job['new_tokens'] // 2
    experts = spec.feed_forward.experts
    if job['planted']:
        block = model.feed_forward
        block.routers = block.predictors = PlantedRouting(block.routers, planted_routing(
            max(job['prompts']) + job['new_tokens'], spec.layers, experts.count, experts.active),
            job['recall'])
        block.ranks = experts.active if job['recall'] else 0
    model.observer = recorder = Recorder(range(spec.layers))
    prompts = {length: length / prompt_seconds(model, job['tokens'][:length])
               for length in job['prompts']}
    position = max(job['prompts'])
    tokens = np.random.default_rng(1).choice(job['tokens'], 2 * half).tolist()
    generated(model, position, tokens[:half])
    before, cpu = engine.stats(), cpu_seconds()
    seconds = generated(model, position + half, tokens[half:])
    used = {name: count - before[name] for name, count in engine.stats().items()}
    cpu = cpu_seconds() - cpu
    # A chunk of a prompt is one turn of each layer, as a token is.
    trace = NeuronTrace('', 1, np.array(recorder.rows).reshape(-1, spec.layers, experts.count)
                        ).groups()
    groups = engine.geometry.all_layers(EXPERT_SECTIONS[0])[0].stride
    # Those of the embedding's rows, too.
    held = min(model.window.plan.cache_slots // groups, spec.layers * experts.count)
    first, whole = at_best(held, trace[:-half]), at_best(held, trace)
    expert = groups * engine.geometry.group_bytes
    uses = half * spec.layers * experts.active
    # Of experts' groups, and next to none of the embedding's; what every token uses is not counted.
    streamed = groups_streamed(engine.geometry, model.window.plan, model.feed_forward.grouped)
    missed, foreseen = ((used[name] - late) / (uses * groups) for name, late in (
        ('misses', half * streamed), ('prefetch_used', 0)))
    return {'token_seconds': seconds, 'prompt_tokens_per_second': prompts,
            'hits': 1 - missed - foreseen, 'foreseen': foreseen,
            'belady': (whole.hits - first.hits) / uses, 'held': held,
            'bytes': used['flash_bytes'] / half, 'reads': used['flash_reads'] / half,
            'belady_bytes': (whole.misses - first.misses) * expert / half,
            'used_bytes': spec.layers * experts.active * expert,
            'cpu_seconds': cpu / half, 'peak': peak_resident_bytes(),
            'plan': engine.plan.table()}


def main() -> None:
    bare = resident_bytes()
    job = json.loads(sys.argv[1])
    if 'bare' in job:
        print(json.dumps({'bare': bare}))
        return
    try:
        engine = Engine.open(EngineConfig(
            Path(job['store']), job['budget'], context_length=job['context'],
            prefill_chunk=job['batch'], threads=job['threads'], verify=False, max_sessions=0))
    except FlashLlmError as error:
        print(json.dumps({'refused': str(error)}))
        return
    print(json.dumps(measured(engine, job)))


if __name__ == '__main__':
    main()
