"""`flash_llm bench`: what this machine makes of a store: speed, flash and memory."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
import json
import os
from pathlib import Path
from statistics import median
import sys
from typing import Any

from rich.console import Console
from rich.table import Table

from flash_llm_ros.cli.main import fail
from flash_llm_ros.cli.output_path import output_file
from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.cli.throttled_flash import reading_slowly
from flash_llm_ros.cli.whole_number import whole_number
from flash_llm_ros.engine import Engine, EngineConfig, GenerationRequest
from flash_llm_ros.engine.byte_size import parse_byte_size
from flash_llm_ros.engine.config import MODES
from flash_llm_ros.engine.memory.process_memory import (
    forget_peak,
    peak_resident_bytes,
    resident_bytes,
)
from flash_llm_ros.store.device_profile import DeviceProfile, usable_profile
from flash_llm_ros.store.errors import FlashLlmError
from flash_llm_ros.store.flash_classes import FLASH_CLASSES

EPILOG = """\
examples:
  flash_llm bench /data/smollm2.store --budget 96MB
  flash_llm bench /data/qwen.store --budget 560MB --threads 4 --json bench.json
  flash_llm bench /data/relu.store --budget 560MB --mode gated
  flash_llm bench /data/qwen.store --budget 800MB --draft /data/small.store --flash emmc

Opens the store as the node does, answers one prompt a few times and prints medians. The floor is
the least time in which the flash, as `flash_llm probe` found it, delivers what a token read.
Run nothing else meanwhile.
"""
TOLERANCE = 16 << 20    # bytes: code that is touched first while answering, and the allocator
PROMPT = 'Tell me in a few sentences how a robot finds its way through a house.'


@dataclass(frozen=True)
class Answered:
    """One answer. Seconds, bytes; what was read for it in the prompt and after it together."""

    prompt_tokens: int
    tokens: int
    first_token_seconds: float
    tokens_per_second: float
    flash_bytes: int            # of the tokens after the first
    flash_reads: int
    wait_seconds: float         # of them, in which computing stood still for the flash
    passes: int
    drafted_tokens: int
    accepted_tokens: int


def add_arguments(parser: ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument('store', type=Path, help='a flash store')
    parser.add_argument('--budget', default='256MB', metavar='SIZE',
                        help='DRAM budget (default: 256MB)')
    parser.add_argument('--mode', choices=MODES, default=EngineConfig.mode,
                        help="as the node's parameter (default: %(default)s)")
    parser.add_argument('--threads', type=int, default=1, metavar='N',
                        help='that compute (default: 1)')
    parser.add_argument('--draft', type=Path, metavar='STORE',
                        help='a flash store of a small model that guesses tokens')
    parser.add_argument('--context', type=int, default=EngineConfig.context_length, metavar='N',
                        help='tokens of prompt and answer together (default: %(default)s, or what '
                        'the model was trained for, if that is less)')
    parser.add_argument('--tokens', type=whole_number(2), default=32, metavar='N',
                        help='of each answer (default: 32)')
    parser.add_argument('--runs', type=whole_number(1), default=3, metavar='N',
                        help='answers, after one to warm up (default: 3)')
    parser.add_argument('--prompt', default=PROMPT, metavar='TEXT', help='what to ask')
    parser.add_argument('--flash', choices=FLASH_CLASSES, metavar='CLASS',
                        help='let the kernel slow the flash down to one of '
                        f'{", ".join(FLASH_CLASSES)} (as root, where it lets one)')
    parser.add_argument('--json', type=output_file, metavar='PATH',
                        help='write the figures to PATH')


def run(options: Namespace) -> int:
    """Return 0, or 1 where the store cannot be run or the memory promise was broken."""
    try:
        with (nullcontext() if options.flash is None else
              reading_slowly(options.store, FLASH_CLASSES[options.flash])):
            figures = _measure(options)
        if options.json:
            options.json.write_text(json.dumps(figures, indent=2) + '\n')
    except (FlashLlmError, OSError, RuntimeError) as error:
        return fail(error)
    _print(figures)
    grown = figures['peak_rss'] - figures['bare_rss']
    return 0 if grown <= figures['budget'] + TOLERANCE else 1


def _measure(options: Namespace) -> dict[str, Any]:
    config = EngineConfig(options.store, parse_byte_size('budget', options.budget), options.mode,
                          context_length=options.context, threads=options.threads,
                          draft_store=options.draft)
    forget_peak()
    bare, load = resident_bytes(), os.getloadavg()[0]
    engine = Engine.open(config, lambda line: print(line, file=sys.stderr))
    try:
        with Steps() as steps:
            runs = _answers(engine, options, lambda done: steps('answering', done,
                                                                options.runs + 1))
        peak = peak_resident_bytes()
    finally:
        engine.close()
    profile, _ = usable_profile(options.store)
    return {
        'store': str(options.store), 'model': engine.model_name, 'model_bytes': engine.model_bytes,
        'mode': engine.mode, 'flash': options.flash, 'threads': options.threads,
        'reader': engine.reader,
        'load_average': load, 'runs': [asdict(entry) for entry in runs], **_medians(runs, profile),
        'plan': {row.name: row.bytes for row in engine.plan.rows},
        'budget': engine.plan.budget, 'bare_rss': bare, 'peak_rss': peak}


def _answers(
    engine: Engine, options: Namespace, progress: Callable[[int], None],
) -> list[Answered]:
    runs = []
    for done in range(options.runs + 1):
        generation = engine.start(GenerationRequest(options.prompt, max_tokens=options.tokens))
        before: dict[str, int] = {}
        for _ in generation:
            before = before or engine.stats()
        after, cost = engine.stats(), generation.stats
        before = before or after
        runs.append(Answered(
            cost.prompt_tokens, cost.generated_tokens, cost.time_to_first_token,
            cost.tokens_per_second, after['flash_bytes'] - before['flash_bytes'],
            after['flash_reads'] - before['flash_reads'],
            (after['wait_ns'] - before['wait_ns']) / 1e9,
            cost.passes, cost.drafted_tokens, cost.accepted_tokens))
        progress(done + 1)
    return runs[1:] or runs     # the first fills caches


def _medians(runs: list[Answered], profile: DeviceProfile | None) -> dict[str, Any]:
    def of(value: Callable[[Answered], float]) -> float:
        return median(map(value, runs))

    def each(total: Callable[[Answered], float]) -> Callable[[Answered], float]:
        return lambda entry: total(entry) / max(entry.tokens - 1, 1)

    size, reads = of(each(lambda a: a.flash_bytes)), of(each(lambda a: a.flash_reads))
    rate = of(lambda a: a.tokens_per_second)
    return {
        'first_token_seconds': of(lambda a: a.first_token_seconds),
        'prompt_tokens_per_second': of(lambda a: a.prompt_tokens / a.first_token_seconds
                                       if a.first_token_seconds else 0.0),
        'tokens_per_second': rate,
        'least_tokens_per_second': min(a.tokens_per_second for a in runs),
        'most_tokens_per_second': max(a.tokens_per_second for a in runs),
        'tokens_per_pass': of(lambda a: (a.tokens - 1) / max(a.passes, 1)),
        'drafted_tokens': of(lambda a: a.drafted_tokens),
        'accepted_tokens': of(lambda a: a.accepted_tokens),
        'token_seconds': 1 / rate if rate else 0.0,
        'token_wait_seconds': of(each(lambda a: a.wait_seconds)),
        'token_flash_bytes': size, 'token_flash_reads': reads,
        'token_floor_seconds': None if profile is None else profile.floor_seconds(size, reads),
        'profile': None if profile is None else profile.measured_at,
    }


def _print(figures: dict[str, Any]) -> None:
    budget, grown = figures['budget'], figures['peak_rss'] - figures['bare_rss']
    floor, token = figures['token_floor_seconds'], figures['token_seconds']
    table = Table(title=f'{figures["model"]}, {figures["mode"]}, {figures["threads"]} threads, '
                        f'{len(figures["runs"])} answers', show_header=False)
    wait = figures['token_wait_seconds']
    slowed = f', read as from {figures["flash"]}' if figures['flash'] else ''
    rows = {
        'model on flash': f'{figures["model_bytes"] / 1e6:.1f} MB{slowed}',
        'first token': f'{figures["first_token_seconds"]:.2f} s for '
                       f'{figures["runs"][0]["prompt_tokens"]} tokens '
                       f'({figures["prompt_tokens_per_second"]:.0f} a second)',
        'tokens a second': f'{figures["tokens_per_second"]:.2f} '
                           f'({figures["least_tokens_per_second"]:.2f} to '
                           f'{figures["most_tokens_per_second"]:.2f})',
        'a token takes': f'{token * 1e3:.1f} ms, of which {wait * 1e3:.1f} ms waiting for flash',
        'a token reads': f'{figures["token_flash_bytes"] / 1e6:.2f} MB in '
                         f'{figures["token_flash_reads"]:.0f} reads by {figures["reader"]}',
        'tokens a pass': f'{figures["tokens_per_pass"]:.2f}; of {figures["drafted_tokens"]:.0f} '
                         f'drafted {figures["accepted_tokens"]:.0f} accepted',
        'floor of the flash': 'unknown: run `flash_llm probe` first' if floor is None else
                              f'{floor * 1e3:.1f} ms a token, profile of {figures["profile"]}',
        'memory promised': f'{budget / 1e6:.1f} MB beside {figures["bare_rss"] / 1e6:.1f} MB of '
                           'the bare process',
        'memory taken': f'{grown / 1e6:.1f} MB at the most; {TOLERANCE / 1e6:.1f} MB more than '
                        'promised are allowed to code',
    }
    for name, text in rows.items():
        table.add_row(name, text)
    console = Console(width=100)
    console.print(table)
    print(f'load average before: {figures["load_average"]:.1f}')
    beside = '' if floor is None else f', at least {floor * 1e3:.1f} ms of them for the flash'
    print(f'{figures["tokens_per_second"]:.2f} tokens/s, {token * 1e3:.1f} ms a token{beside}; '
          f'{grown / 1e6:.1f} of {budget / 1e6:.1f} MB')
