"""The process of llama.cpp that bench/capped.py measures: one prompt, greedy, figures as JSON.

Run by an interpreter that has llama-cpp-python 0.3.36. It uses the C API below the class Llama,
which would keep copies of the logits.
"""

import ctypes
import json
import sys
import time

import llama_cpp
from llama_cpp import llama_cpp as api
import numpy as np

from bench.support.process_figures import (
    cpu_seconds,
    device_bytes,
    major_faults,
    peak_resident_bytes,
    resident_bytes,
)


def main() -> None:
    bare = resident_bytes()
    job = json.loads(sys.argv[1])
    if job['bare']:
        print(json.dumps({'bare': bare, 'version': llama_cpp.__version__}))
        return
    silent = api.llama_log_callback(lambda level, text, data: None)
    api.llama_log_set(silent, ctypes.c_void_p(0))
    api.llama_backend_init()
    begin = time.perf_counter()
    model = api.llama_model_load_from_file(job['model'].encode(), _set(
        api.llama_model_default_params(), load_mode=api.LLAMA_LOAD_MODE_MMAP,
        use_extra_bufts=False))
    context = model and api.llama_init_from_model(model, _set(
        api.llama_context_default_params(), n_ctx=job['context'], n_batch=job['batch'],
        n_ubatch=job['batch'], n_threads=job['threads'], n_threads_batch=job['threads'],
        no_perf=True))
    if not context:
        print(json.dumps({'refused': 'llama.cpp could not open the model'}))
        return
    opened = time.perf_counter()
    vocabulary = api.llama_vocab_n_tokens(api.llama_model_get_vocab(model))
    for start in range(0, len(job['tokens']), job['batch']):
        token = _decode(context, job['tokens'][start:start + job['batch']], vocabulary)
    times, tokens = [time.perf_counter()], [token]
    before = (device_bytes(), major_faults(), cpu_seconds())
    while len(tokens) < job['new_tokens']:
        tokens.append(_decode(context, tokens[-1:], vocabulary))
        times.append(time.perf_counter())
    after = (device_bytes(), major_faults(), cpu_seconds())
    bytes_read, reads, cpu = (b - a for a, b in zip(before, after, strict=True))
    print(json.dumps({
        'open_seconds': opened - begin, 'first_token_seconds': times[0] - opened,
        'token_seconds': np.diff(times).tolist(), 'tokens': tokens, 'bytes': bytes_read,
        'reads': reads, 'cpu_seconds': cpu, 'peak': peak_resident_bytes()}))


def _set(parameters: ctypes.Structure, **values: object) -> ctypes.Structure:
    """ctypes would take a misspelt or vanished field without a word."""
    known = {field[0] for field in parameters._fields_}
    for name, value in values.items():
        if name not in known:
            raise SystemExit(f'llama_cpp {llama_cpp.__version__} has no parameter {name}; '
                             'this needs llama-cpp-python 0.3.36')
        setattr(parameters, name, value)
    return parameters


def _decode(context: object, tokens: list[int], vocabulary: int) -> int:
    """The most probable token after these."""
    array = (api.llama_token * len(tokens))(*tokens)
    if status := api.llama_decode(context, api.llama_batch_get_one(array, len(tokens))):
        raise SystemExit(f'llama_decode returned {status}')
    logits = api.llama_get_logits_ith(context, -1)
    return int(np.ctypeslib.as_array(logits, (vocabulary,)).argmax())


if __name__ == '__main__':
    main()
