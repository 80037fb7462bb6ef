"""The process that bench.memory.budget measures: answers one prompt, reports its memory as JSON."""

from dataclasses import replace
import json
from pathlib import Path
import sys

from bench.support.page_cache import cached_bytes
from flash_llm_ros.engine import (
    Constraint,
    ConstraintKind,
    Engine,
    EngineConfig,
    GenerationRequest,
    SamplingParams,
)
from flash_llm_ros.engine.memory.process_memory import peak_resident_bytes, resident_bytes
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

PROMPT = 'What is the capital of France? Then tell a long story about a robot in the mountains.'
# Constraints that take much memory, each in its own way.
LARGE = ({'type': 'string', 'minLength': 2000, 'maxLength': 10 ** 7},
         {'type': 'object', 'required': [f'key{i}' for i in range(1500)]},
         {'type': 'array', 'minItems': 1000, 'items': {'type': 'string', 'minLength': 9}})


def main() -> None:
    bare = resident_bytes()
    job = json.loads(sys.argv[1])
    if 'bare' in job:
        print(json.dumps({'bare': bare}))
        return
    store, tokens = Path(job['store']), job['tokens']
    engine = Engine.open(EngineConfig(store, job['budget'], job['mode'], context_length=512,
                                      threads=job['threads'], structured=job['structured']))
    cache_before = cached_bytes(store)
    spec = engine.model.spec
    engine.model.spec = replace(spec, end_tokens=())    # as many tokens as were asked for
    generation = engine.start(GenerationRequest(PROMPT, max_tokens=tokens))
    for _ in generation:
        pass
    engine.model.spec = spec
    for schema in LARGE if job['structured'] else ():
        constrained = engine.start(GenerationRequest(
            PROMPT, max_tokens=tokens, sampling=SamplingParams(temperature=1.5),
            constraint=Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(schema))))
        try:
            for _ in constrained:
                pass
        except FlashLlmError as error:
            assert error.code is ErrorCode.CONSTRAINT_UNMET
    cost = generation.stats
    print(json.dumps({
        'bare': bare, 'peak': peak_resident_bytes(), 'planned': engine.plan.planned,
        'direct': engine.model.window.core.direct, 'generated': cost.generated_tokens,
        'flash_bytes': cost.flash_bytes, 'tokens_per_second': cost.tokens_per_second,
        'cache_growth': cached_bytes(store) - cache_before, 'text': generation.text}))


if __name__ == '__main__':
    main()
