"""`flash_llm trace`: record which neurons the tokens of a text need, for bench/policies.py."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
import sys

from flash_llm_ros.cli.main import fail
from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.engine import Engine, EngineConfig
from flash_llm_ros.engine.byte_size import parse_byte_size
from flash_llm_ros.engine.neuron_trace import record
from flash_llm_ros.store.errors import FlashLlmError

EPILOG = """\
examples:
  flash_llm trace /data/smollm2.store --text missions.txt --out missions.npz
  python bench/policies.py missions.npz                        replay it against window policies
"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument('store', help='a calibrated flash store')
    parser.add_argument('--text', type=Path, required=True, help='a file of UTF-8 text')
    parser.add_argument('--out', type=Path, required=True, help='the trace to write (.npz)')
    parser.add_argument('--tokens', type=int, default=256, help='at most these (default: 256)')
    parser.add_argument('--sparsity', type=float, default=None,
                        help='share of the down columns left out (default: as calibrated)')
    parser.add_argument('--budget', default='512MB', help='DRAM budget (default: 512MB)')


def run(options: Namespace) -> int:
    try:
        text = options.text.read_text('utf-8')
        config = EngineConfig(Path(options.store), parse_byte_size('budget', options.budget),
                              'sparse', sparsity=options.sparsity,
                              down_reads='scattered')      # with predictions
        engine = Engine.open(config, lambda line: print(line, file=sys.stderr))
        try:
            with Steps() as steps:
                trace = record(engine, text, max(options.tokens, 1),
                               lambda done, total: steps('reading text', done, total))
        finally:
            engine.close()
        trace.save(options.out)
    except (FlashLlmError, OSError, UnicodeDecodeError) as error:
        return fail(error)
    uses = [event for event in trace if not event.predicted]
    share = sum(int(event.neurons.sum()) for event in uses) / sum(
        len(event.neurons) for event in uses)
    print(f'{options.out}: {trace.tokens} tokens of {trace.model}, {share:.1%} of the neurons '
          f'used, {options.out.stat().st_size / 1e6:.1f} MB')
    return 0
