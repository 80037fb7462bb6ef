"""`flash_llm verify`: does every file still hold what was written?"""

from argparse import ArgumentParser, Namespace
import json

from flash_llm_ros.cli.main import fail
from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.store.errors import FlashLlmError
from flash_llm_ros.store.flash_store import FlashStore

EPILOG = """\
examples:
  flash_llm verify /data/smollm2.store
  flash_llm verify /data/smollm2.store --json | jq .bytes

Reads every byte; a damaged file is named and the exit code is 1.
"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument('store', help='a flash store')
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
    except FlashLlmError as error:
        return fail(error)
    if options.json:
        print(json.dumps({'store': str(store.path), 'files': len(store.manifest.files),
                          'bytes': store.bytes, 'intact': True}))
        return 0
    print(f'{store.path}: {len(store.manifest.files)} files, {store.bytes / 1e6:.1f} MB, intact')
    return 0
