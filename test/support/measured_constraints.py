"""The hostile constraints, tried in a process of its own.

    python test/support/measured_constraints.py STORE

Prints JSON: for each the peak of resident memory it took in bytes, and how it ended.
"""

import gc
import json
from pathlib import Path
import sys

import numpy as np

from bench.faults.hostile_constraints import HOSTILE
from flash_llm_ros.engine.memory.process_memory import (
    peak_resident_bytes,
    resident_bytes,
    return_large_blocks,
    trim_heap,
)
from flash_llm_ros.engine.request.constrained_decoding import ConstrainedDecoding
from flash_llm_ros.engine.request.constraint import Constraint
from flash_llm_ros.engine.text.tokenizer import load_tokenizer
from flash_llm_ros.store.errors import FlashLlmError
from flash_llm_ros.store.flash_store import FlashStore

MOST_TOKENS = 600       # of an answer


def attempt(decoding: ConstrainedDecoding, constraint: Constraint) -> str:
    """Answer with tokens drawn at random from those that are allowed."""
    random = np.random.default_rng(0)
    answer = decoding.start(constraint)
    count = 0
    while not answer.complete and count < MOST_TOKENS:
        tokens = answer.forced() or [int(random.choice(np.flatnonzero(answer.allowed())))]
        for token in tokens[:MOST_TOKENS]:
            answer.take(token)
            count += 1
    return f'{count} tokens'


def main() -> None:
    return_large_blocks()
    store = FlashStore.open(Path(sys.argv[1]))
    spec = store.manifest.model
    decoding = ConstrainedDecoding(load_tokenizer(store).vocabulary, spec.embedding.vocab_size,
                                   spec.end_tokens)
    decoding.warm()
    results = {}
    for name, make in HOSTILE.items():
        constraint = make()
        gc.collect()
        trim_heap()
        Path('/proc/self/clear_refs').write_text('5')       # the peak begins anew
        before = resident_bytes()
        try:
            ended = attempt(decoding, constraint)
        except FlashLlmError as error:
            ended = f'{error.code.name}: {error}'
        results[name] = peak_resident_bytes() - before, ended
    print(json.dumps(results))


if __name__ == '__main__':
    main()
