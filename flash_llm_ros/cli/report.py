"""`flash_llm report`: one page on a flash store and what it can do on this machine."""

from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from dataclasses import asdict
from importlib.resources import files
import json
from pathlib import Path

from flash_llm_ros.cli.main import fail
from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.engine import Engine, EngineConfig
from flash_llm_ros.engine.byte_size import parse_byte_size
from flash_llm_ros.engine.neuron_trace import NeuronTrace, record
from flash_llm_ros.engine.plan import MemoryPlan
from flash_llm_ros.report.figures import budget_floors, hit_rates, layer_activities
from flash_llm_ros.report.page import Findings, page
from flash_llm_ros.report.plots import require_matplotlib
from flash_llm_ros.store.device_profile import usable_profile
from flash_llm_ros.store.errors import FlashLlmError
from flash_llm_ros.store.flash_store import FlashStore

EPILOG = """\
examples:
  flash_llm report /data/qwen.store
  flash_llm report /data/qwen.store --budgets 560MB 1GB --text missions.txt --out qwen.html

Plots need matplotlib: pip install "flash_llm_ros[report]".
"""
_TOKENS = 256


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument('store', help='a flash store')
    parser.add_argument('--out', type=Path, default=Path('report.html'), metavar='PATH',
                        help='the page to write (default: report.html)')
    parser.add_argument('--budgets', nargs='+', default=[], metavar='SIZE',
                        help='DRAM budgets (default: six, from the least to all of the model)')
    parser.add_argument('--text', type=Path, metavar='FILE',
                        help="UTF-8 text to watch neurons on (default: the package's own)")
    parser.add_argument('--tokens', type=int, default=_TOKENS,
                        help=f'of the text, at most (default: {_TOKENS}; 0: watch none)')
    parser.add_argument('--json', type=Path, metavar='PATH', help='write the figures to PATH, too')


def run(options: Namespace) -> int:
    try:
        require_matplotlib()
        store = FlashStore.open(options.store)
        budgets = [parse_byte_size('budgets', budget) for budget in options.budgets]
        with Steps() as steps:
            found = _find(store, options, budgets, steps)
        options.out.write_text(page(store, found), encoding='utf-8')
        if options.json:
            options.json.write_text(json.dumps(_facts(store, found), indent=2) + '\n')
    except (FlashLlmError, ImportError, OSError, UnicodeDecodeError) as error:
        return fail(error)
    print(f'{options.out}: {len(found.floors)} budgets, {found.trace_tokens} tokens watched')
    return 0


def _find(store: FlashStore, options: Namespace, budgets: list[int],
          steps: Callable[[str, int, int], None]) -> Findings:
    profile, _ = usable_profile(store.path)
    floors = budget_floors(_exact_plan(store), store.manifest.geometry, profile, budgets)
    missing = {'floors': 'Every budget that was given is below the least.',
               'perplexity': 'Not measured: `flash_llm calibrate STORE`.',
               'predictors': 'There are none: `flash_llm calibrate STORE`.',
               'activities': 'No tokens were watched.'}
    if store.manifest.calibration is None:
        missing['activities'] = missing['predictors']
    if store.manifest.calibration is None or options.tokens < 1:
        return Findings(floors, missing={**missing, 'hit_rates': missing['activities']})
    text = (options.text.read_text('utf-8') if options.text
            else files('flash_llm_ros.convert').joinpath('default_text.txt').read_text('utf-8'))
    trace = _trace(store, text, options.tokens, steps)
    try:
        rates = hit_rates(trace)
    except ImportError:
        rates, missing['hit_rates'] = {}, 'Replaying a trace needs the compiled core.'
    return Findings(floors, layer_activities(trace), rates, trace.tokens, missing)


def _exact_plan(store: FlashStore) -> MemoryPlan:
    engine = Engine.open(EngineConfig(store.path, _plenty(store), verify=False, lock_memory=False))
    try:
        return engine.plan
    finally:
        engine.close()


def _trace(store: FlashStore, text: str, tokens: int,
           steps: Callable[[str, int, int], None]) -> NeuronTrace:
    engine = Engine.open(EngineConfig(store.path, _plenty(store), 'sparse', verify=False,
                                      lock_memory=False, down_reads='scattered'))
    try:
        return record(engine, text, tokens,
                      lambda done, total: steps('watching neurons', done, total))
    finally:
        engine.close()


def _plenty(store: FlashStore) -> int:
    """A budget for a short look: this is no promise to a robot."""
    return 256_000_000 + min(store.bytes, 1_000_000_000)


def _facts(store: FlashStore, found: Findings) -> dict[str, object]:
    calibration = store.manifest.calibration
    return {'model': store.manifest.model.name, 'bytes': store.bytes,
            'calibration': calibration and asdict(calibration),
            'floors': [asdict(floor) for floor in found.floors],
            'hit_rates': found.hit_rates, 'trace_tokens': found.trace_tokens,
            'activity': [{'layer': one.layer, 'gini': one.gini, 'friend_rank': one.friend_rank,
                          'used': float(one.frequencies.mean())} for one in found.activities]}
