"""`flash_llm order`: neurons by contribution, for mode aggressive; of ReLU models by activity."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from flash_llm_ros.calibrate.ordered_store import ACTIVITY_ORDERS, OrderOptions, order_store
from flash_llm_ros.cli.main import fail
from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.convert.calibration_text import default_text, read_texts
from flash_llm_ros.store.errors import FlashLlmError
from flash_llm_ros.store.flash_store import FlashStore

EPILOG = """\
examples:
  flash_llm order /data/qwen.store /data/qwen-ordered.store --text missions.txt chat.jsonl
  flash_llm order /data/qwen.store /data/qwen-ordered.store --shares 1 0.85 0.75
"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument('store', type=Path, help='a flash store; it stays as it is')
    parser.add_argument('target', type=Path, help='the folder to write')
    parser.add_argument('--text', type=Path, nargs='+', metavar='FILE',
                        help='UTF-8 text or .jsonl files, some thousand words, best of what the '
                             "robot will be asked (default: the package's own, which is short)")
    parser.add_argument('--shares', type=float, nargs='+', default=OrderOptions.shares,
                        metavar='SHARE', help='of the neurons, to prepare '
                        f'(default: {" ".join(map(str, OrderOptions.shares))})')
    parser.add_argument('--rank', type=int, default=OrderOptions.rank,
                        help=f'of the corrections (default: {OrderOptions.rank})')
    parser.add_argument('--head-rank', type=int, help="of the output head's sketch (default: a "
                        'sixth of the hidden size)')
    parser.add_argument('--head-rows', type=int, default=OrderOptions.head_rows,
                        help='of the output head that a token reads '
                             f'(default: {OrderOptions.head_rows})')
    parser.add_argument('--tokens', type=int, default=OrderOptions.most_tokens,
                        help=f'read at most so many (default: {OrderOptions.most_tokens})')
    parser.add_argument('--activity', choices=tuple(ACTIVITY_ORDERS), default='frequency',
                        help="what orders a ReLU model's neurons (default: frequency)")
    parser.add_argument('--replace', action='store_true', help='replace a store that exists')


def run(options: Namespace) -> int:
    try:
        chosen = OrderOptions(tuple(options.shares), options.rank, options.head_rank,
                              options.head_rows, options.tokens, activity=options.activity,
                              replace=options.replace)
        texts = read_texts(options.text) if options.text else [default_text()]
        with Steps() as steps:
            store = order_store(options.store.absolute(), options.target.absolute(), texts,
                                chosen, steps)
    except (FlashLlmError, OSError, ValueError) as error:
        return fail(error)
    _print(store)
    return 0


def _print(store: FlashStore) -> None:
    aggressive, model = store.manifest.aggressive, store.manifest.model
    if aggressive is None:
        print(f'{store.path}: neurons by activity; mode sparse needs new predictors: '
              f'flash_llm calibrate {store.path}')
        return
    table = Table('neuron_share', 'perplexity relative to exact', 'neurons of a layer')
    for name, share in aggressive.shares.items():
        table.add_row(name, f'{share.perplexity:.3f}',
                      f'{min(share.widths)} to {max(share.widths)} of {model.feed_forward.size}')
    Console(width=100).print(table)
    print(f'{store.path}: mode aggressive uses {aggressive.default_share:.0%} of the neurons by '
          f'default; measured on {aggressive.measured_tokens} held-out tokens')
