"""Our engine and llama.cpp (the wheel xllamacpp) under the same memory cap, on the same disk, with
the same prompt: tokens per second, percentiles, bytes read, memory.

Each run is a process of its own in a memory cgroup whose limit is the bare process of that engine
(interpreter and imports, no model) + the allowance, which is our memory budget. Model and store are
dropped from the page cache before every run; the engines take turns. Where xllamacpp is not
installed only our engine is measured. After each run another process finds how fast memory is read
and the flash streamed: the roof is what they would allow for the bytes that a token of this engine
takes from both. With --flash the kernel slows this machine's disk down to
what robots have (`flash_llm_ros/store/flash_classes.py` names the sources).
"""

from argparse import ArgumentParser, Namespace
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.util import find_spec
import os
from pathlib import Path
import statistics
import sys
import time
from typing import Any

import numpy as np

from bench.support.command import Report, at_least, byte_size, command, run, show
from bench.support.worker import bare_bytes, drop_from_page_cache, run_capped, run_worker
from flash_llm_ros.checkpoint.gguf_header import read_header
from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.cli.throttled_flash import throttled_flash
from flash_llm_ros.convert.conversion import convert
from flash_llm_ros.convert.options import ConversionOptions
from flash_llm_ros.engine import EngineConfig
from flash_llm_ros.engine.text.chat_template import Message
from flash_llm_ros.engine.text.text_part import TextPart
from flash_llm_ros.store.flash_classes import FLASH_CLASSES
from flash_llm_ros.store.flash_store import NEURONS, FlashStore

PEER = 'llama.cpp'
# An answer that repeats its question would flatter the guessing of tokens.
PROMPT = ('Write a short story about a lighthouse keeper on a stormy coast. Begin with the '
          'weather, then let a stranger knock at the door.')
_MOST_CACHED = 0.01         # share of the weights that does not falsify a cold start


@dataclass(frozen=True)
class Side:
    """An engine as it is measured; `weights` is the file or folder that it runs from,
    `token_bytes` what of it every pass goes over.
    """

    name: str
    module: str
    weights: Path
    bare: int               # bytes
    job: dict[str, Any]
    token_bytes: int = 0    # 0: not known


def prompt_of(store: FlashStore, asked: str) -> dict[str, Any]:
    """The prompt in the model's chat template, as text and as tokens."""
    part = TextPart(store, time.time)
    part.load()
    text = part.template.render([Message('user', asked)])
    return {'text': text, 'tokens': part.tokenizer.encode(text)}


def store_token_bytes(store: FlashStore) -> int:
    """Of all sections but an embedding of its own, of experts as many as a token uses."""
    spec, total = store.manifest.model, 0
    for section in store.manifest.geometry.sections:
        if section.name != 'embedding' or spec.embedding.tied:
            experts = spec.feed_forward.experts
            uses = 1 if section.copies == 1 or experts is None else experts.active
            total += uses * section.bundles * section.rows * section.codec.row_bytes
    return total


def gguf_token_bytes(path: Path) -> int:
    """Of all tensors but an embedding of its own."""
    tensors = read_header(path).tensors
    return sum(place.end - place.start for name, place in tensors.items()
               if name != 'token_embd.weight' or 'output.weight' not in tensors)


def sides_of(options: Namespace, store: FlashStore) -> list[Side]:
    """The peer; exact mode without and with guessed tokens; gated mode where the store has it."""
    common = {**prompt_of(store, options.prompt), 'context': options.context,
              'batch': options.chunk, 'new_tokens': options.tokens}
    ours, theirs = 'bench.memory.ours', 'bench.memory.llama_cpp'
    bare, path = bare_bytes(ours), store.path.resolve()
    settings = {'exact': ('exact', 0), 'exact, lookup': ('exact', EngineConfig.lookup_tokens)}
    if store.manifest.calibration is not None:
        settings['gated'] = 'gated', 0
    if options.draft is not None:
        settings['exact, drafts'] = 'exact', EngineConfig.lookup_tokens
    drafts = {'exact, drafts': {'draft': str(options.draft and options.draft.resolve())}}
    sides = [Side(name, ours, path, bare,
                  {**common, 'store': str(path), 'mode': mode, 'lookup_tokens': lookup_tokens,
                   **drafts.get(name, {})},
                  0 if mode == 'gated' else store_token_bytes(store))
             for name, (mode, lookup_tokens) in settings.items()]
    if find_spec('xllamacpp') is None:
        print('xllamacpp is not installed (requirements/bench.txt): only our engine is measured',
              file=sys.stderr)
        return sides
    model, bare = options.model.resolve(), bare_bytes(theirs)
    peers = {PEER: False, f'{PEER}, repacked': True} if options.repack else {PEER: False}
    return [*(Side(name, theirs, model, bare, {**common, 'model': str(model), 'repack': repack},
                   gguf_token_bytes(model)) for name, repack in peers.items()), *sides]


@dataclass(frozen=True)
class Case:
    """Bytes, threads, and the class of flash that the disk is slowed down to; None: none."""

    allowance: int
    threads: int
    flash: str | None

    def __str__(self) -> str:
        flash = '' if self.flash is None else f', {self.flash}'
        return f'{self.allowance / 1e6:.0f} MB, {self.threads} thr.{flash}'


def one_run(side: Side, sides: list[Side], case: Case, timeout: float) -> dict[str, Any]:
    """One run from a cold page cache."""
    cached = {path: drop_from_page_cache(path) for path in {other.weights for other in sides}}
    load, left = os.getloadavg()[0], cached[side.weights]
    if left > _MOST_CACHED * weight(side.weights):
        found = {'failed': f'{left / 1e6:.0f} MB of {side.weights} stay in the page cache because '
                 'another process uses them; they would not count under the cap', 'oom_kills': 0}
    else:
        job = {**side.job, 'threads': case.threads, 'budget': case.allowance}
        with ExitStack() as stack:
            groups = [] if case.flash is None else [stack.enter_context(
                throttled_flash(side.weights, FLASH_CLASSES[case.flash])).path]
            found = run_capped(side.module, job, side.bare + case.allowance, timeout, groups)
            if 'token_seconds' in found:
                file = side.weights / NEURONS if side.weights.is_dir() else side.weights
                found |= run_worker('bench.memory.roof', {
                    'file': str(file), 'threads': case.threads}, groups, timeout)
    return {'side': side.name, **asdict(case), 'load': load, 'bare': side.bare,
            'token_bytes': side.token_bytes, **found}


def weight(path: Path) -> int:
    """Bytes of a file, or of all files in a folder."""
    return sum(file.stat().st_size for file in ([path] if path.is_file() else path.rglob('*')))


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One row for the runs of one side. Times in seconds: percentiles over all tokens, medians
    over runs.
    """
    row = {name: runs[0][name] for name in ('side', 'allowance', 'threads', 'flash', 'bare')}
    row |= {'oom_kills': sum(run['oom_kills'] for run in runs),
            'why_not': next((run[key] for run in runs for key in ('refused', 'failed')
                             if key in run), None)}
    good = [run for run in runs if 'token_seconds' in run]
    if not good:
        return row
    times = np.concatenate([run['token_seconds'] for run in good])
    row |= {f'p{point}': float(np.percentile(times, point)) for point in (50, 95, 99)}
    row |= {name: statistics.median(run[name] / len(run['token_seconds']) for run in good)
            for name in ('bytes', 'reads', 'cpu_seconds')}
    return row | {
        **{name: statistics.median(run[name] for run in good)
           for name in ('memory_rate', 'flash_rate')},
        'roof': statistics.median(roof(run) for run in good),
        'tokens_per_second': statistics.median(
            len(run['token_seconds']) / sum(run['token_seconds']) for run in good),
        'tokens_per_pass': statistics.median(
            len(run['token_seconds']) / (run.get('passes') or len(run['token_seconds']))
            for run in good),
        'texts': sorted({run['text'] for run in good}),
        'first_token': statistics.median(run['first_token_seconds'] for run in good),
        'peak': max(run['peak'] for run in good)}


def roof(run: dict[str, Any]) -> float:
    """Tokens per second that memory and flash would have allowed for the bytes of this run."""
    tokens = len(run['token_seconds'])
    return 1 / max(run['token_bytes'] / run['memory_rate'] * (run.get('passes') or tokens) / tokens,
                   run['bytes'] / tokens / run['flash_rate'], 1e-9)


def cells(row: dict[str, Any], peer: float | None) -> list[str]:
    """`peer`: its tokens per second."""
    if 'p50' not in row:
        return [row['side'], '-', *[''] * 11, str(row['oom_kills'])]
    speed = row['tokens_per_second']
    return [row['side'], f'{speed:.2f}', f'{speed / peer:.2f}' if peer else '',
            f'{row["roof"]:.1f}', *(f'{row[name] * 1e3:.1f}' for name in ('p50', 'p95', 'p99')),
            f'{row["first_token"]:.2f}', f'{row["tokens_per_pass"]:.2f}',
            f'{row["bytes"] / 1e6:.1f}', f'{row["reads"]:.0f}',
            f'{row["cpu_seconds"] * 1e3:.0f}', f'{row["peak"] / 1e6:.0f}', str(row['oom_kills'])]


def print_rows(rows: list[dict[str, Any]]) -> str:
    """Print a table for each allowance and number of threads; returns the headline."""
    parts = []
    for what in dict.fromkeys(str(row['case']) for row in rows):
        mine = [row for row in rows if str(row['case']) == what]
        peer = next((row for row in mine if row['side'] == PEER), {}).get('tokens_per_second')
        show(('engine', 'tokens/s', 'gain', 'roof', 'p50 ms', 'p95', 'p99', 'first token s',
              'tokens/pass', 'MB/token', 'reads', 'CPU ms', 'peak RSS MB', 'OOM kills'),
             [cells(row, peer) for row in mine], what)
        rates = {name: statistics.median(row[f'{name}_rate'] for row in mine if 'roof' in row)
                 for name in ('memory', 'flash') if any('roof' in row for row in mine)}
        print(', '.join(f'{name}: {rate / 1e9:.2f} GB/s between the runs'
                        for name, rate in rates.items()))
        for why in dict.fromkeys(row['why_not'] for row in mine if row['why_not']):
            print(f'{", ".join(row["side"] for row in mine if row["why_not"] == why)}: {why}')
        texts = {text for row in mine if row['side'].startswith('exact')
                 for text in row.get('texts', ())}
        if len(texts) > 1:
            print(f'{len(texts)} texts of mode exact: tokens that tie are rounded in their passes')
        speeds = [(row['side'], row.get('tokens_per_second')) for row in mine
                  if not row['side'].startswith(PEER)]
        parts.append(f'{what}: ' + ', '.join(
            f'{name} ' + ('no run' if speed is None else f'{speed / peer:.2f}x' if peer
                          else f'{speed:.2f} tokens/s') for name, speed in speeds))
    print('gain: tokens/s beside llama.cpp. roof: tokens/s at which memory or flash would be busy '
          'all the time with these bytes. MB and reads per token: ours as the engine counts '
          'them, those of llama.cpp from /proc/self/io and its major page faults.')
    return f'against llama.cpp: {"; ".join(parts)}'


def opened_store(options: Namespace) -> FlashStore:
    """That of the option, or one of the model, which is made where it is missing."""
    path = options.store or options.model.with_suffix('.int4.store')
    if not path.exists():
        with Steps() as steps:
            convert(options.model, path, ConversionOptions(neurons='int4'), steps)
    return FlashStore.open(path)


def measure(options: Namespace) -> Report:
    store = opened_store(options)
    sides = sides_of(options, store)
    cases = [Case(allowance, threads, flash) for allowance in options.allowance
             for threads in options.threads for flash in options.flash]
    runs = {(case, side.name): [] for case in cases for side in sides}
    order = [(case, side) for case in cases for _ in range(options.rounds) for side in sides]
    with Steps() as steps:
        for done, (case, side) in enumerate(order, 1):
            runs[case, side.name].append(one_run(side, sides, case, options.timeout))
            steps('runs', done, len(order))
    rows = [{**summary(found), 'case': str(case)} for (case, _), found in runs.items()]
    headline = print_rows(rows)
    return Report({'model': str(options.model), 'store': str(store.path), 'rows': rows,
                   'prompt_tokens': len(sides[0].job['tokens']),
                   'runs': [run for found in runs.values() for run in found]},
                  f'{options.model.name} {headline}')


def parser() -> ArgumentParser:
    result = command(__doc__)
    result.add_argument('model', type=Path, help='a .gguf file')
    result.add_argument('allowance', type=byte_size, nargs='+',
                        help="memory beside the bare process: '560MB'")
    result.add_argument('--store', type=Path, help='the flash store of that model (default: '
                        'beside it, with int4 neurons; made when it is missing)')
    result.add_argument('--threads', type=at_least(1), nargs='+', default=[1, 2])
    result.add_argument('--draft', type=Path, metavar='STORE',
                        help='the store of a draft model: one more engine')
    result.add_argument('--repack', action='store_true', help="one more engine: llama.cpp's "
                        'default, which copies weights into another layout and needs more memory')
    result.add_argument('--flash', choices=FLASH_CLASSES, nargs='+', default=[None],
                        help='classes that the disk is slowed down to (default: as it is)')
    result.add_argument('--prompt', metavar='TEXT', default=PROMPT, help='(default: a story)')
    result.add_argument('--tokens', type=at_least(3), default=32, help='new tokens of each run')
    result.add_argument('--rounds', type=at_least(1), default=2, help='runs of each engine')
    result.add_argument('--context', type=int, default=512, help='tokens of prompt and answer')
    result.add_argument('--chunk', type=int, default=64, help='prompt tokens computed at once')
    result.add_argument('--timeout', type=float, default=900.0, help='seconds for one run')
    return result


if __name__ == '__main__':
    sys.exit(run(parser(), measure))
