"""`flash_llm verify`: does every file still hold what was written?"""

from argparse import ArgumentParser, Namespace

from flash_llm_ros.cli.main import fail
from flash_llm_ros.cli.progress import Steps
from flash_llm_ros.store.errors import FlashLlmError
from flash_llm_ros.store.flash_store import FlashStore


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument('store', help='a flash store')


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
    print(f'{store.path}: {len(store.manifest.files)} files, {store.bytes / 1e6:.1f} MB, intact')
    return 0
