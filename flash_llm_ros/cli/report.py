"""`flash_llm report`: one page on a flash store and what it can do on this machine."""

from argparse import ArgumentParser, Namespace
from dataclasses import asdict
import json

from flash_llm_ros.cli.main import fail
from flash_llm_ros.cli.output_path import output_file
from flash_llm_ros.engine import Engine, EngineConfig
from flash_llm_ros.engine.byte_size import parse_byte_size
from flash_llm_ros.engine.plan import MemoryPlan
from flash_llm_ros.report.figures import budget_floors
from flash_llm_ros.report.page import page
from flash_llm_ros.store.device_profile import usable_profile
from flash_llm_ros.store.errors import FlashLlmError
from flash_llm_ros.store.flash_store import FlashStore

EPILOG = """\
examples:
  flash_llm report /data/qwen.store
  flash_llm report /data/qwen.store --budgets 560MB 1GB --out qwen.html
"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument('store', help='a flash store')
    parser.add_argument('--out', type=output_file, default='report.html', metavar='PATH',
                        help='the page to write (default: report.html)')
    parser.add_argument('--budgets', nargs='+', default=[], metavar='SIZE',
                        help='DRAM budgets (default: six, from the least to all of the model)')
    parser.add_argument('--json', type=output_file, metavar='PATH',
                        help='write the figures to PATH, too')


def run(options: Namespace) -> int:
    try:
        store = FlashStore.open(options.store)
        budgets = [parse_byte_size('budgets', budget) for budget in options.budgets]
        profile, _ = usable_profile(store.path)
        floors = budget_floors(_plans(store), store, profile, budgets)
        options.out.write_text(page(store, floors, profile), encoding='utf-8')
        if options.json:
            calibration = store.manifest.calibration
            facts = {'model': store.manifest.model.name, 'bytes': store.bytes,
                     'calibration': calibration and asdict(calibration),
                     'floors': [asdict(floor) for floor in floors]}
            options.json.write_text(json.dumps(facts, indent=2) + '\n')
    except (FlashLlmError, OSError) as error:
        return fail(error)
    print(f'{options.out}: {len(floors)} budgets')
    return 0


def _plans(store: FlashStore) -> dict[str, MemoryPlan]:
    """Of each mode that the store has."""
    # A plentiful budget for a short look: this is no promise to a robot.
    budget = 256_000_000 + min(store.bytes, 1_000_000_000)
    plans = {}
    for mode in ('exact', *['gated'] * (store.manifest.calibration is not None)):
        engine = Engine.open(EngineConfig(store.path, budget, mode, verify=False,
                                          lock_memory=False))
        plans[mode] = engine.plan
        engine.close()
    return plans
