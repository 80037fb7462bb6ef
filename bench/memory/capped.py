"""Our engine and llama.cpp under the same memory cap, on the same disk, with the same prompt.

    python bench/capped.py MODEL.gguf 560MB 1.3GB --peer-python PYTHON [--store STORE]
        [--threads 1 2] [--tokens 32] [--rounds 2] [--sparsity 0.7] [--quality] [--json PATH]

Each run is a process of its own in a memory cgroup whose limit is the bare process of that engine
(interpreter and imports, no model) + the allowance. Our memory budget is the allowance. Model and
store are dropped from the page cache before every run; the engines take turns. Without an
interpreter that has llama-cpp-python 0.3.36 (doc/performance.md says how to make one) only our
engine is measured.
"""

from argparse import ArgumentParser, Namespace
import json
import os
from pathlib import Path
import platform
import subprocess
import sys
import tempfile
from typing import Any

from floors import Floors

from bench.memory.capped_table import PEER, Side, headline, show, summary
from bench.support.capped_process import bare_bytes, drop_from_page_cache, run_capped
from bench.support.ensure_store import ensure_store
from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.engine import EngineConfig
from flash_llm_ros.engine.byte_size import parse_byte_size
from flash_llm_ros.engine.text.chat_template import ChatTemplate, Message
from flash_llm_ros.engine.text.tokenizer import TextTokenizer
from flash_llm_ros.store.errors import FlashLlmError
from flash_llm_ros.store.flash_store import (
    CHAT_TEMPLATE,
    MANIFEST,
    TOKENIZER,
    FlashStore,
    file_sha256,
)

# An answer that repeats its question would flatter the guessing of tokens.
PROMPT = ('Write a short story about a lighthouse keeper on a stormy coast. Begin with the '
          'weather, then let a stranger knock at the door.')
_MOST_CACHED = 0.01         # share of the weights that does not falsify a cold start
_HERE = Path(__file__).parent


def prompt_of(store: FlashStore) -> dict[str, Any]:
    """The prompt in the model's chat template, as text and as tokens."""
    spec = store.manifest.model
    tokenizer = TextTokenizer(store.text(TOKENIZER), spec.begin_token)
    end = spec.end_tokens[0] if spec.end_tokens else None
    template = ChatTemplate(store.text(CHAT_TEMPLATE), tokenizer.text_of(spec.begin_token),
                            tokenizer.text_of(end))
    text = template.render([Message('user', PROMPT)])
    return {'text': text, 'tokens': tokenizer.encode(text)}


def sides_of(options: Namespace, store: FlashStore) -> list[Side]:
    """The peer, exact mode without and with guessed tokens, sparse and aggressive settings."""
    common = {**prompt_of(store), 'context': options.context, 'batch': options.chunk,
              'new_tokens': options.tokens}
    worker = _HERE / 'capped_ours.py'
    bare = bare_bytes(sys.executable, worker)['bare']

    def side(name: str, regime: str, lookup_tokens: int, sparsity: float | None = None,
             share: float | None = None) -> Side:
        mode = 'aggressive' if share else 'exact' if sparsity is None else 'sparse'
        return Side(name, mode, regime, sys.executable, worker, bare, store.bytes,
                    {**common, 'store': str(store.path), 'mode': mode, 'sparsity': sparsity,
                     'neuron_share': share, 'lookup_tokens': lookup_tokens})

    sides = [side('exact', 'exact', 0),
             side('exact, lookup', 'exact', EngineConfig.lookup_tokens)]
    calibration = store.manifest.calibration
    if calibration is None:
        print(f'{store.path} has no calibration: sparse mode is left out', file=sys.stderr)
    else:
        sparsities = {round(calibration.default_sparsity, 4), *(options.sparsity or [0.7])}
        sides += [side(f'sparse {sparsity:.0%}', f'sparse {sparsity:.0%}', 0, sparsity)
                  for sparsity in sorted(sparsities)]
    if store.manifest.aggressive is not None:
        shares = [float(share) for share in store.manifest.aggressive.shares]
        sides += [side(f'aggressive {share:.0%}', f'aggressive {share:.0%}', 0, share=share)
                  for share in shares]
        sides.append(side(f'aggressive {min(shares):.0%}, lookup', f'aggressive {min(shares):.0%}',
                          EngineConfig.lookup_tokens, share=min(shares)))
    if options.peer_python is None:
        print('no --peer-python: only our engine is measured', file=sys.stderr)
        return sides
    worker = _HERE / 'capped_llama.py'
    bare = bare_bytes(options.peer_python, worker)['bare']
    peer = Side(PEER, 'peer', PEER, options.peer_python, worker, bare,
                options.model.stat().st_size, {**common, 'model': str(options.model)})
    return [peer, *sides]


def quality_of(options: Namespace, store: FlashStore,
               sides: list[Side]) -> dict[str, Any] | None:
    """What bench/store_quality.py prints for these sides; from --json when it is there already."""
    ours = {side.regime: side.job for side in sides if side.name != PEER}
    settings = {name: [str(job[name]) for job in ours.values() if job[name] is not None]
                for name in ('sparsity', 'neuron_share')}
    if options.json and options.json.exists():
        earlier = json.loads(options.json.read_text()).get('quality')
        if (earlier and earlier['manifest'] == file_sha256(store.path / MANIFEST)
                and ours.keys() <= earlier['relative'].keys()):
            return earlier
    if not options.quality:
        return None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'quality.json'
        # A process of its own: the reference takes gigabytes that the runs after it could need.
        command = [sys.executable, str(_HERE / 'store_quality.py'), str(options.model),
                   str(store.path), '--tokens', str(options.quality_tokens), '--json', str(path),
                   '--sparsity', *settings['sparsity'], '--share', *settings['neuron_share']]
        subprocess.run(command, check=True)
        return json.loads(path.read_text())


def measure(side: Side, allowance: int, threads: int, options: Namespace,
            store: FlashStore) -> dict[str, Any]:
    """One run from a cold page cache."""
    cached = {path: drop_from_page_cache(path) for path in (options.model, store.path)}
    load = os.getloadavg()[0]
    path = options.model if side.name == PEER else store.path
    if cached[path] > _MOST_CACHED * side.weights:
        figures = {'oom_kills': 0, 'failed': f'{cached[path] / 1e6:.0f} MB of {path} stay in the '
                   'page cache because another process uses them; they would not count under '
                   'the cap'}
    else:
        figures = run_capped(side.interpreter, side.worker,
                             {**side.job, 'threads': threads, 'budget': allowance},
                             side.bare + allowance, options.timeout)
    return {'side': side.name, 'allowance': allowance, 'threads': threads, 'load': load,
            'bare': side.bare, 'still_cached': cached[path], **figures}


def parse() -> Namespace:
    parser = ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('model', type=Path, help='a .gguf file')
    parser.add_argument('allowance', nargs='+', help="memory beside the bare process: '560MB'")
    parser.add_argument('--store', type=Path, help='the flash store of that model (default: '
                        'beside it, with int4 neurons; made when it is missing)')
    parser.add_argument('--peer-python', metavar='PYTHON',
                        help='an interpreter that has llama-cpp-python 0.3.36')
    parser.add_argument('--threads', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--tokens', type=int, default=32, help='new tokens of each run')
    parser.add_argument('--rounds', type=int, default=2, help='runs of each engine')
    parser.add_argument('--context', type=int, default=512, help='tokens of prompt and answer')
    parser.add_argument('--chunk', type=int, default=64, help='prompt tokens computed at once')
    parser.add_argument('--sparsity', type=float, nargs='+',
                        help='for sparse mode, beside the calibrated one (default: 0.7)')
    parser.add_argument('--quality', action='store_true',
                        help='also measure what each regime costs in perplexity')
    parser.add_argument('--quality-tokens', type=int, default=1000)
    parser.add_argument('--timeout', type=float, default=900.0, help='seconds for one run')
    parser.add_argument('--json', type=Path)
    options = parser.parse_args()
    if options.tokens < 3:
        parser.error(f'--tokens is {options.tokens}; it must be at least 3')
    return options


def main() -> int:
    options = parse()
    try:
        allowances = [parse_byte_size('allowance', text) for text in options.allowance]
        path = options.store or options.model.with_suffix('.int4.store')
        store = FlashStore.open(ensure_store(options.model, path, neurons='int4'))
    except (FlashLlmError, ValueError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 1
    sides = sides_of(options, store)
    quality = quality_of(options, store, sides)
    floors = Floors(store, options.threads)
    runs: list[dict[str, Any]] = []
    order = [(allowance, threads, side) for allowance in allowances for threads in options.threads
             for _ in range(options.rounds) for side in sides]
    with Steps() as steps:
        for allowance, threads, side in order:
            runs.append(measure(side, allowance, threads, options, store))
            steps('runs', len(runs), len(order))
    floors.measure_again()
    rows = [summary(side, allowance, threads, runs, floors, quality)
            for allowance in allowances for threads in options.threads for side in sides]
    show(rows, floors)
    if options.json:
        options.json.write_text(json.dumps({
            'model': str(options.model), 'store': str(store.path), 'processor': processor(),
            'prompt_tokens': len(sides[0].job['tokens']), 'floors': floors.to_dict(),
            'quality': quality, 'rows': rows, 'runs': runs}, indent=2) + '\n')
    print(headline(options.model.name, rows))
    return 0


def processor() -> str:
    try:
        with open('/proc/cpuinfo', encoding='utf-8') as file:
            name = next(line.split(':', 1)[1].strip() for line in file if 'model name' in line)
    except (OSError, StopIteration):
        name = platform.machine()
    return f'{os.cpu_count()} x {name}'


if __name__ == '__main__':
    sys.exit(main())
