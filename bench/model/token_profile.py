"""Where the milliseconds of one token go: ONNX Runtime, kernels, waiting for reads, finding slots,
Python; means over one greedy answer, and beside them its time without the profiler.
"""

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path
import sys
import time
from typing import Any

from bench.support.command import Report, apart, at_least, byte_size, command, run, show
from bench.support.process_figures import cpu_seconds
from bench.support.time_by_part import time_by_part
from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.engine import Engine, EngineConfig, GenerationRequest

PROMPT = 'Tell a long story about a robot in the mountains.'
_COUNTED = ('flash_bytes', 'flash_reads', 'read_ns')


def profiled(store: Path, budget: int, mode: str, threads: int, tokens: int) -> dict[str, Any]:
    """Parts of a token in seconds, and what is known beside them."""
    engine = Engine.open(EngineConfig(store, budget, mode, context_length=512, threads=threads,
                                      lookup_tokens=0))
    try:
        engine.model.spec = replace(engine.model.spec, end_tokens=())
        request = GenerationRequest(PROMPT, max_tokens=tokens + 1)
        pieces = iter(engine.start(request))
        next(pieces)                        # the prompt is read densely
        before, cpu, begin = engine.stats(), cpu_seconds(), time.perf_counter()
        for _ in pieces:
            pass
        seconds, cpu = time.perf_counter() - begin, cpu_seconds() - cpu
        after = engine.stats()
        pieces = iter(engine.start(request))
        next(pieces)
        with time_by_part(engine) as found:
            for _ in pieces:
                pass
        return {'threads': threads, 'mode': engine.config.mode,
                'parts': {name: part / tokens for name, part in found.parts.items()},
                'calls': {name: call / tokens for name, call in found.calls.items()},
                'layers': engine.model.spec.layers, 'kernels': engine.model.window.core.kernels,
                'without_profiler': seconds / tokens, 'cpu': cpu / tokens,
                **{name: (after[name] - before[name]) / tokens for name in _COUNTED}}
    finally:
        engine.close()


def print_profile(one: dict[str, Any]) -> None:
    total = sum(one['parts'].values())
    show(('part', 'ms', 'share', f'a layer of {one["layers"]}'),
         [(name, f'{value * 1e3:.2f}', f'{value / total:.0%}',
           f'{value * 1e3 / one["layers"]:.3f}')
          for name, value in sorted(one['parts'].items(), key=lambda part: -part[1])],
         f'{one["threads"]} thread{"s" * (one["threads"] > 1)}, mode {one["mode"]}, '
         f'{one["kernels"]}')
    calls = ', '.join(f'{name} {value * 1e3:.2f} ms' for name, value in one['calls'].items()
                      if value * 1e3 >= 0.005)
    print(f'{one["without_profiler"] * 1e3:.2f} ms without the profiler, {one["cpu"] * 1e3:.1f} ms '
          f'of CPU; {one["flash_bytes"] / 1e6:.1f} MB in {one["flash_reads"]:.0f} reads, under way '
          f'for {one["read_ns"] / 1e6:.1f} ms; calls of the core, waits included: {calls}\n')


def measure(options: Namespace) -> Report:
    found = []
    with Steps() as steps:
        for threads in options.threads:
            found.append(apart(profiled, options.store, options.budget, options.mode, threads,
                               options.tokens))
            steps('profiles', len(found), len(options.threads))
    for one in found:
        print_profile(one)
    parts = found[0]['parts']
    largest = sorted(parts, key=parts.get)[:-4:-1]
    return Report(found, f'{options.store.name}, {found[0]["mode"]}: '
                  f'{found[0]["without_profiler"] * 1e3:.1f} ms a token; with the profiler '
                  f'{sum(parts.values()) * 1e3:.1f}, of which '
                  + ', '.join(f'{parts[name] * 1e3:.1f} {name}' for name in largest))


def parser() -> ArgumentParser:
    result = command(__doc__)
    result.add_argument('store', type=Path)
    result.add_argument('budget', type=byte_size, help="'560MB'")
    result.add_argument('--mode', default='exact')
    result.add_argument('--threads', type=at_least(1), nargs='+', default=[1, 2])
    result.add_argument('--tokens', type=at_least(1), default=32)
    return result


if __name__ == '__main__':
    sys.exit(run(parser(), measure))
