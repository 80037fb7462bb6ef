"""The process of our engine that bench.memory.capped measures: one prompt, greedy, JSON out."""

from dataclasses import replace
import json
from pathlib import Path
import sys
import time

import numpy as np

from bench.support.process_figures import cpu_seconds, peak_resident_bytes, resident_bytes
from flash_llm_ros.engine import Engine, EngineConfig, GenerationRequest
from flash_llm_ros.store.errors import FlashLlmError


def main() -> None:
    bare = resident_bytes()
    job = json.loads(sys.argv[1])
    if 'bare' in job:
        print(json.dumps({'bare': bare}))
        return
    begin = time.perf_counter()
    try:
        engine = Engine.open(EngineConfig(
            Path(job['store']), job['budget'], job['mode'], context_length=job['context'],
            prefill_chunk=job['batch'], threads=job['threads'],
            lookup_tokens=job['lookup_tokens'],
            kv_cache=job.get('kv_cache', EngineConfig.kv_cache),
            draft_store=Path(job['draft']) if 'draft' in job else None))
    except FlashLlmError as error:
        print(json.dumps({'refused': str(error)}))
        return
    # An answer that ended early would be compared with a longer one.
    engine.model.spec = replace(engine.model.spec, end_tokens=())
    opened = time.perf_counter()
    generation = engine.start(GenerationRequest(job['text'], raw=True,
                                                max_tokens=job['new_tokens']))
    if generation.prompt_tokens != job['tokens']:
        raise SystemExit('the prompt was tokenised in another way than for the peer')
    times: list[float] = []
    for _ in generation:
        if len(generation.tokens) > len(times):
            times.append(time.perf_counter())
            if len(times) == 1:
                before = _counts(engine)
    used = {name: value - before[name] for name, value in _counts(engine).items()}
    print(json.dumps({
        'open_seconds': opened - begin, 'first_token_seconds': times[0] - opened,
        'token_seconds': np.diff(times).tolist(), 'text': generation.text,
        'bytes': used['flash_bytes'], 'reads': used['flash_reads'], 'cpu_seconds': used['cpu'],
        'passes': generation.stats.passes, 'drafted': generation.stats.drafted_tokens,
        'accepted': generation.stats.accepted_tokens,
        'peak': peak_resident_bytes(), 'kernels': engine.model.window.core.kernels,
        'plan': engine.plan.table()}))


def _counts(engine: Engine) -> dict[str, float]:
    return {**engine.stats(), 'cpu': cpu_seconds()}


if __name__ == '__main__':
    main()
