"""The process of bench.faults.checksum_price: one answer, with the core that is named."""

from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
import json
from pathlib import Path
import sys

import flash_llm_ros

NATIVE = 'flash_llm_ros._native'


def use_core(path: str) -> None:
    """Before anything imports the one that is installed."""
    loader = ExtensionFileLoader(NATIVE, path)
    module = module_from_spec(spec_from_loader(NATIVE, loader))
    loader.exec_module(module)
    sys.modules[NATIVE] = flash_llm_ros._native = module


def main() -> None:
    job = json.loads(sys.argv[1])
    if 'core' in job:
        use_core(job['core'])
    from bench.support.process_figures import cpu_seconds
    from flash_llm_ros.engine import Engine, EngineConfig, GenerationRequest
    engine = Engine.open(EngineConfig(Path(job['store']), job['budget'], job['mode'],
                                      context_length=512, threads=job['threads'], lookup_tokens=0))
    generation = engine.start(GenerationRequest('Tell a long story about a robot in the mountains.',
                                                max_tokens=job['tokens']))
    pieces = iter(generation)
    while not generation.tokens:
        next(pieces)
    before, counted = cpu_seconds(), engine.stats()
    for _ in pieces:
        pass
    tokens, after = len(generation.tokens) - 1, engine.stats()
    print(json.dumps({
        'text': generation.text, 'tokens_per_second': generation.stats.tokens_per_second,
        'cpu': (cpu_seconds() - before) / tokens,
        'checked': (after['crc_checked'] - counted['crc_checked']) / tokens,
        'flash_bytes': (after['flash_bytes'] - counted['flash_bytes']) / tokens}))


if __name__ == '__main__':
    main()
