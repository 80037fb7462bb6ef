"""Our engine and llama.cpp (the wheel xllamacpp), all in DRAM: tokens per second and processor time
of a token behind long prompts, the prompt's tokens per second, and what the KV cache takes.

Each run is a process of its own; the engines take turns, and the fastest round of each is shown.
The context is as long as it is called, so that the last new token fills it. After each run another
process finds how fast memory is read: the roof is what that would allow for the weights and the
KV cache of one token.
"""

from argparse import ArgumentParser, Namespace
from importlib.util import find_spec
from pathlib import Path
import sys
import time
from typing import Any

from bench.memory.capped import PEER, gguf_token_bytes, opened_store, store_token_bytes
from bench.quality.held_out_text import other_text
from bench.support.command import Report, at_least, command, run, show
from bench.support.worker import run_worker
from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.engine import EngineConfig
from flash_llm_ros.engine.config import KV_CACHES
from flash_llm_ros.engine.model.attention import attention_of
from flash_llm_ros.engine.text.text_part import TextPart
from flash_llm_ros.store.flash_store import FlashStore

_DRAM = 1 << 40             # bytes, of which the engine takes what it needs
_F16 = 2                    # bytes, of llama.cpp's keys and values
_WORDS = 3                  # of which one token at least is made


def prompt_of(store: FlashStore, tokens: int) -> dict[str, Any]:
    """A text of so many tokens, or a few less: words end where they end."""
    part = TextPart(store, time.time)
    part.load()
    words = other_text().split(' ')
    words *= 1 + _WORDS * tokens // len(words)
    text = ' '.join(words[:_WORDS * tokens])
    encoded = part.tokenizer.encode(text)
    while len(encoded) > tokens:
        text = text[:int(len(text) * tokens / len(encoded))].rpartition(' ')[0]
        encoded = part.tokenizer.encode(text)
    return {'text': text, 'tokens': encoded}


def jobs_of(options: Namespace, store: FlashStore, context: int) -> dict[str, tuple[str, dict]]:
    """Engine -> module of its process and what that is to do."""
    common = {**prompt_of(store, context - options.tokens), 'context': context,
              'batch': options.chunk, 'new_tokens': options.tokens}
    ours = {f'exact, {cache}': ('bench.memory.ours', {
        **common, 'store': str(store.path.resolve()), 'mode': 'exact', 'lookup_tokens': 0,
        'budget': _DRAM, 'kv_cache': cache}) for cache in options.kv_caches}
    if find_spec('xllamacpp') is None:
        print('xllamacpp is not installed (requirements/bench.txt): only our engine is measured',
              file=sys.stderr)
        return ours
    return {PEER: ('bench.memory.llama_cpp', {
        **common, 'model': str(options.model.resolve()), 'repack': True})} | ours


def cache_bytes(store: FlashStore, context: int, engine: str) -> int:
    spec = store.manifest.model
    if engine == PEER:
        return 2 * _F16 * spec.layers * spec.attention.kv_width * context
    config = EngineConfig(store.path, 1, kv_cache=engine.rpartition(' ')[2], prefill_chunk=1)
    return attention_of(store, config, context).cache_bytes(context)


def best_of(runs: list[dict[str, Any]], token_bytes: int) -> dict[str, float]:
    """Of the fastest run: tokens per second of decoding, what memory would have allowed, seconds of
    processor.

    `token_bytes`: what of weights and KV cache a token goes over.
    """
    def decoding(found: dict[str, Any]) -> float:
        return found.get('decode_seconds', sum(found['token_seconds']))

    best = min(runs, key=decoding)
    return {'tokens_per_second': len(best['token_seconds']) / decoding(best),
            'roof': best['memory_rate'] / token_bytes,
            'cpu_seconds': best['cpu_seconds'] / len(best['token_seconds']),
            'first_token': min(found['first_token_seconds'] for found in runs)}


def measure(options: Namespace) -> Report:
    store = opened_store(options)
    cases = {(context, threads, engine): job for context in options.behind
             for engine, job in jobs_of(options, store, context).items()
             for threads in options.threads}
    runs: dict[tuple[int, int, str], list[dict[str, Any]]] = {case: [] for case in cases}
    with Steps() as steps:
        for done in range(options.rounds * len(cases)):
            case = [*cases][done % len(cases)]
            module, job = cases[case]
            job = {**job, 'threads': case[1]}
            runs[case].append(run_worker(module, job, (), options.timeout) | run_worker(
                'bench.memory.roof', {'file': str(store.neurons), 'threads': case[1]}, (),
                options.timeout))
            steps('runs', done + 1, options.rounds * len(cases))
    rows = []
    for (context, threads, engine), found in runs.items():
        cache = cache_bytes(store, context, engine)
        weights = gguf_token_bytes(options.model) if engine == PEER else store_token_bytes(store)
        rows.append({'behind': context, 'threads': threads, 'engine': engine,
                     'prompt_tokens': len(cases[context, threads, engine][1]['tokens']),
                     'cache_bytes': cache, **best_of(found, weights + cache)})
    return Report(rows, print_rows(rows))


def print_rows(rows: list[dict[str, Any]]) -> str:
    """A table; returns the headline."""
    peers = {(row['behind'], row['threads']): row['tokens_per_second'] for row in rows
             if row['engine'] == PEER}
    gains = [row['tokens_per_second'] / peers[place] if (place := (row['behind'], row['threads']))
             in peers else None for row in rows]
    show(('behind tokens', 'threads', 'engine', 'tokens/s', 'gain', 'roof', 'CPU ms',
          'prompt tokens/s', 'KV cache MB'),
         [(str(row['behind']), str(row['threads']), row['engine'],
           f'{row["tokens_per_second"]:.1f}', '' if gain is None else f'{gain:.2f}',
           f'{row["roof"]:.1f}', f'{row["cpu_seconds"] * 1e3:.1f}',
           f'{row["prompt_tokens"] / row["first_token"]:.0f}', f'{row["cache_bytes"] / 1e6:.1f}')
          for row, gain in zip(rows, gains, strict=True)])
    return '; '.join(f'behind {row["behind"]}, {row["threads"]} threads, {row["engine"]}: '
                     + (f'{row["tokens_per_second"]:.1f} tokens/s' if gain is None else
                        f'{gain:.2f}x')
                     for row, gain in zip(rows, gains, strict=True) if row['engine'] != PEER)


def parser() -> ArgumentParser:
    result = command(__doc__)
    result.add_argument('model', type=Path, help='a .gguf file')
    result.add_argument('--store', type=Path, help='the flash store of that model (default: '
                        'beside it, with int4 neurons; made when it is missing)')
    result.add_argument('--behind', type=at_least(16), nargs='+', default=[512, 2048, 4096, 8192],
                        help='tokens of prompt and answer together')
    result.add_argument('--threads', type=at_least(1), nargs='+', default=[1, 2])
    result.add_argument('--kv-caches', choices=KV_CACHES, nargs='+', default=['int8'])
    result.add_argument('--tokens', type=at_least(4), default=12, help='new tokens of each run')
    result.add_argument('--rounds', type=at_least(1), default=2, help='runs of each engine')
    result.add_argument('--chunk', type=at_least(1), default=64,
                        help='prompt tokens computed at once')
    result.add_argument('--timeout', type=float, default=900.0, help='seconds for one run')
    return result


if __name__ == '__main__':
    sys.exit(run(parser(), measure))
