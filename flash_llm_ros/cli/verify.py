"""`flash_llm verify`: does a store hold what was written, and what is in a checkpoint?"""

from argparse import ArgumentParser, Namespace
import json
from pathlib import Path

from flash_llm_ros.cli.main import fail
from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.store.errors import FlashLlmError
from flash_llm_ros.store.flash_store import FlashStore

EPILOG = """\
examples:
  flash_llm verify /data/smollm2.store
  flash_llm verify /data/smollm2.store --json | jq .bytes
  flash_llm verify /data/smollm2.store --against smollm2.Q4_1.gguf

Reads every byte; a damaged file is named and the exit code is 1. With --against, so is the first
weight, text or setting that is not the checkpoint's; predictors are not compared.
"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument('store', help='a flash store')
    parser.add_argument('--against', metavar='CHECKPOINT', help='compare with this, too')
    parser.add_argument('--ffn', type=Path, metavar='FILE',
                        help='of the checkpoint: the feed-forward weights that convert was given')
    parser.add_argument('--json', action='store_true', help='print JSON for a script')


def run(options: Namespace) -> int:
    done = 0

    def count(read: int) -> None:
        nonlocal done
        done += read
        steps('verifying', done, store.bytes)

    try:
        store = FlashStore.open(options.store)
        with Steps() as steps:
            store.verify(progress=count)
            if options.against is not None:
                _compare(store, options, steps)
    except (FlashLlmError, OSError, ValueError) as error:
        return fail(error)
    if options.json:
        print(json.dumps({'store': str(store.path), 'files': len(store.manifest.files),
                          'bytes': store.bytes, 'intact': True, 'against': options.against}))
        return 0
    print(f'{store.path}: {len(store.manifest.files)} files, {store.bytes / 1e6:.1f} MB, intact'
          + (f'; every weight is that of {options.against}' if options.against else ''))
    return 0


def _compare(store: FlashStore, options: Namespace, steps: Steps) -> None:
    # What reads checkpoints is not installed on every robot.
    from flash_llm_ros.checkpoint.open import open_checkpoint
    from flash_llm_ros.convert.comparison import Comparison

    Comparison(store, open_checkpoint(options.against, options.ffn)).run(steps)
