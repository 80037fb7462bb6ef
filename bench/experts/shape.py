"""A model of a mixture of experts' shape, random weights in 4 bits, beside llama.cpp under the same
memory cap: prompts, tokens, hits beside Belady's, and what device and memory take for the bytes.

Each run is a process of its own in a memory cgroup whose limit is the bare process and the
allowance, which is our budget; engines take turns, and the second half of the tokens counts.
Routing is planted (bench.experts.planted_routing), or the router's own, which has no memory with
random weights: the worst case. With planted routing `--recall` of the next layer's experts is
foreseen, as published (.79 to .97). Where xllamacpp is not installed only our engine is measured.
"""

from argparse import ArgumentParser, Namespace
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path
import statistics
import sys
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from bench.experts.shape_files import (
    BYTE_TOKENS,
    SHAPES,
    RandomWeights,
    write_model_gguf,
    write_store,
)
from bench.memory.capped import PEER, Case, Side, one_run
from bench.support.command import Report, at_least, byte_size, command, run, show
from bench.support.memory_roof import MemoryRoof
from bench.support.worker import bare_bytes
from flash_llm_ros import _native
from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.engine.memory.window_plan import head_index
from flash_llm_ros.store.flash_store import NEURONS, RESIDENT, FlashStore
from flash_llm_ros.store.geometry import MODEL_WIDE

_ROOF_BYTES = 256_000_000
_DEVICE_READ, _IN_FLIGHT = 1 << 20, 8


def sides_of(options: Namespace, folder: Path, steps: Steps) -> list[Side]:
    """Writes what is not in the folder."""
    weights = RandomWeights(options.shape, SHAPES[options.shape])
    store, model = folder / f'{options.shape}.store', folder / f'{options.shape}.gguf'
    if not store.exists():
        write_store(weights, store, steps)
    prompt = np.random.default_rng(0).integers(BYTE_TOKENS, weights.spec.embedding.vocab_size,
                                               max(options.prompts)).tolist()
    common = {'prompts': options.prompts, 'tokens': prompt, 'new_tokens': options.tokens,
              'batch': options.chunk, 'context': len(prompt) + options.tokens}
    ours, theirs = 'bench.experts.shape_worker', 'bench.memory.llama_cpp'
    bare = bare_bytes(ours)
    sides = [Side(f'ours, {name}', ours, store, bare,
                  {**common, 'store': str(store), 'planted': name == 'planted',
                   'recall': options.recall})
             for name in options.routing]
    if options.peer and find_spec('xllamacpp') is not None:
        if not model.exists():
            write_model_gguf(weights, model)
        sides.append(Side(PEER, theirs, model, bare_bytes(theirs),
                          {**common, 'model': str(model), 'repack': False}))
    return sides


def rates_of(store: FlashStore) -> tuple[float, float]:
    """Bytes a second of the device, in random reads of 1 MiB, and of memory, by one thread."""
    path = store.path / NEURONS
    read = _native.measure_reads(path, min(_DEVICE_READ, path.stat().st_size), _IN_FLIGHT, 1.0,
                                 'random')
    roof = MemoryRoof(_ROOF_BYTES)
    seconds = min(roof.thread_seconds() for _ in range(3))
    return read['bytes'] / read['seconds'], _ROOF_BYTES / seconds


def always_bytes(store: FlashStore) -> int:
    """What every token computes with beside experts."""
    geometry = store.manifest.geometry
    head = head_index(geometry)
    groups = sum(section.groups for index, section in enumerate(geometry.sections)
                 if index == head or (section.layer != MODEL_WIDE and section.copies == 1))
    return groups * geometry.group_bytes + store.manifest.files[RESIDENT]['bytes']


def summary(side: str, runs: list[dict[str, Any]], rates: tuple[float, float], always: int
            ) -> dict[str, Any]:
    good = [run for run in runs if 'token_seconds' in run]
    row = {'side': side, 'oom_kills': sum(run['oom_kills'] for run in runs),
           'why_not': next((run[key] for run in runs for key in ('refused', 'failed')
                            if key in run), None)}
    if not good:
        return row
    tokens = len(good[0]['token_seconds'])
    if side == PEER:
        for each in good:
            each['token_seconds'] = each['token_seconds'][tokens // 2:]
    times = np.concatenate([run['token_seconds'] for run in good])
    row |= {f'p{point}': float(np.percentile(times, point)) for point in (50, 95, 99)}
    row['tokens_per_second'] = statistics.median(
        len(run['token_seconds']) / sum(run['token_seconds']) for run in good)
    row['prompts'] = {length: statistics.median(run['prompt_tokens_per_second'][length]
                                                for run in good)
                      for length in good[0]['prompt_tokens_per_second']}
    row['peak'] = max(run['peak'] for run in good)
    if side == PEER:        # of all tokens
        return row | {name: statistics.median(run[name] / tokens for run in good)
                      for name in ('bytes', 'reads')}
    row |= {name: statistics.median(run[name] for run in good) for name in (
        'bytes', 'reads', 'hits', 'foreseen', 'belady', 'belady_bytes', 'used_bytes', 'held')}
    row['device_seconds'] = row['bytes'] / rates[0]
    row['memory_seconds'] = (row['used_bytes'] + always) / rates[1]
    return row


def speeds_of(row: dict[str, Any], prompts: list[int]) -> list[str]:
    if 'p50' not in row:
        return [row['side'], '-', *[''] * (4 + len(prompts)), str(row['oom_kills'])]
    return [row['side'], f'{row["tokens_per_second"]:.2f}',
            *(f'{row[name] * 1e3:.0f}' for name in ('p50', 'p95', 'p99')),
            *(f'{row["prompts"][str(length)]:.1f}' for length in prompts),
            f'{row["peak"] / 1e6:.0f}', str(row['oom_kills'])]


def reads_of(row: dict[str, Any]) -> list[str]:
    read = [row['side'], f'{row["bytes"] / 1e6:.1f}', f'{row["reads"]:.0f}']
    if row['side'] == PEER:
        return [*read, *[''] * 6]
    device, memory = (row[f'{name}_seconds'] * 1e3 for name in ('device', 'memory'))
    return [*read, *(f'{row[name]:.3f}' for name in ('hits', 'foreseen', 'belady')),
            f'{device:.1f}', f'{memory:.1f}', f'{row["p50"] * 1e3 / max(device, memory):.2f}']


def measure(options: Namespace) -> Report:
    with ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(TemporaryDirectory()))
        steps = stack.enter_context(Steps())
        sides = sides_of(options, folder.resolve(), steps)
        store = FlashStore.open(sides[0].weights)
        rates: list[tuple[float, float]] = []       # others may use device and memory, too
        always = always_bytes(store)
        case = Case(options.allowance, options.threads, None)
        runs: dict[str, list[dict[str, Any]]] = {side.name: [] for side in sides}
        order = sides * options.rounds
        for done, side in enumerate(order, 1):
            rates.append(rates_of(store))
            runs[side.name].append(one_run(side, sides, case, options.timeout))
            steps('runs', done, len(order))
        size = store.bytes
    device, memory = (max(each) for each in zip(*rates, strict=True))
    rows = [summary(side, found, (device, memory), always) for side, found in runs.items()]
    show(('routing', 'tokens/s', 'p50 ms', 'p95', 'p99',
          *(f'prompt of {length}' for length in options.prompts), 'RSS MB', 'OOM kills'),
         [speeds_of(row, options.prompts) for row in rows],
         f'{options.shape}: {size / 1e9:.2f} GB in {options.allowance / 1e6:.0f} MB, '
         f'{options.threads} thread{"s" * (options.threads > 1)}; prompts in tokens/s')
    show(('routing', 'MB/token', 'reads', 'hits', 'foreseen', "Belady's", 'device ms', 'memory ms',
          'p50 / greater'), [reads_of(row) for row in rows if 'p50' in row],
         f'device {device / 1e6:.0f} MB/s, memory {memory / 1e9:.1f} GB/s, best between runs')
    for row in rows:
        if row['why_not']:
            print(f'{row["side"]}: {row["why_not"]}')
    return Report({'rows': rows, 'rates': (device, memory), 'always_bytes': always,
                   'runs': [run for found in runs.values() for run in found]},
                  _headline(options.shape, rows))


def _headline(shape: str, rows: list[dict[str, Any]]) -> str:
    speeds = {row['side']: row.get('tokens_per_second') for row in rows}
    peer = speeds.pop(PEER, None)
    return f'{shape}: ' + ', '.join(
        f'{side} ' + ('no run' if speed is None else f'{speed:.2f} tokens/s'
                      + (f', {speed / peer:.2f}x {PEER}' if peer else ''))
        for side, speed in speeds.items())


def parser() -> ArgumentParser:
    result = command(__doc__)
    result.add_argument('shape', choices=SHAPES)
    result.add_argument('allowance', type=byte_size,
                        help="memory beside the bare process: '960MB'")
    result.add_argument('--routing', nargs='+', choices=('planted', 'own'),
                        default=['planted', 'own'], help='whose (default: both)')
    result.add_argument('--recall', type=float, default=0.0,
                        help='of planted routing that is foreseen (default: 0, nothing is)')
    result.add_argument('--no-peer', dest='peer', action='store_false',
                        help='our engine alone: no GGUF file is written')
    result.add_argument('--prompts', type=at_least(1), nargs='+', default=[16, 128, 512],
                        help='their tokens (default: 16 128 512)')
    result.add_argument('--tokens', type=at_least(4), default=64, help='behind the longest prompt')
    result.add_argument('--chunk', type=at_least(1), default=128,
                        help='prompt tokens computed at once (default: 128)')
    result.add_argument('--threads', type=at_least(1), default=1)
    result.add_argument('--rounds', type=at_least(1), default=2, help='runs of each')
    result.add_argument('--timeout', type=float, default=900.0, help='seconds for one run')
    result.add_argument('--folder', type=Path,
                        help='where store and GGUF file lie, or are made to stay')
    return result


if __name__ == '__main__':
    sys.exit(run(parser(), measure))
