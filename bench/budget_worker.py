"""The process that bench/budget.py measures: answers one prompt, reports its memory as JSON."""

import json
from pathlib import Path
import sys

from page_cache import cached_bytes

from flash_llm_ros.engine import Engine, EngineConfig, GenerationRequest
from flash_llm_ros.engine.process_memory import peak_resident_bytes, resident_bytes

PROMPT = 'What is the capital of France? Then tell a long story about a robot in the mountains.'


def main(store: str, budget: str, mode: str, tokens: str) -> None:
    bare = resident_bytes()
    if mode == 'bare':
        print(json.dumps({'bare': bare}))
        return
    engine = Engine.open(EngineConfig(Path(store), int(budget), mode))
    cache_before = cached_bytes(Path(store))
    generation = engine.start(GenerationRequest(PROMPT, max_tokens=int(tokens)))
    for _ in generation:
        pass
    cost = generation.stats
    print(json.dumps({
        'bare': bare, 'peak': peak_resident_bytes(), 'planned': engine.plan.planned,
        'direct': engine.model.window.core.direct, 'tokens': cost.generated_tokens,
        'flash_bytes': cost.flash_bytes, 'tokens_per_second': cost.tokens_per_second,
        'cache_growth': cached_bytes(Path(store)) - cache_before, 'text': generation.text}))


if __name__ == '__main__':
    main(*sys.argv[1:])
