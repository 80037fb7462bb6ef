"""The process of llama.cpp that bench.memory.capped measures: one prompt, greedy, JSON out.

For bench.experts.shape: before it the first so many of its tokens, for each of 'prompts'.
'decode_seconds' is llama.cpp's own clock: where its threads leave no processor to this one, pieces
come in bursts.
"""

from itertools import pairwise
import json
import sys
import time

import xllamacpp

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
    if 'bare' in job:
        print(json.dumps({'bare': bare}))
        return
    parameters = xllamacpp.CommonParams()
    parameters.model.path = job['model']
    parameters.n_ctx = job['context']
    parameters.n_batch = parameters.n_ubatch = job['batch']
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = job['threads']
    # Pages of the file can be dropped under the cap; copies of weights or of prompts cannot.
    parameters.load_mode = xllamacpp.llama_load_mode.LLAMA_LOAD_MODE_MMAP
    parameters.no_extra_bufts = not job['repack']
    parameters.cache_ram_mib = parameters.n_ctx_checkpoints = 0
    parameters.fit_params = parameters.warmup = False
    parameters.verbosity = -1
    begin = time.perf_counter()
    server = xllamacpp.Server(parameters)
    opened = time.perf_counter()
    prompts = {}
    for length in job.get('prompts', ()):
        before = time.perf_counter()
        server.handle_completions({'prompt': job['tokens'][:length], 'n_predict': 1,
                                   'temperature': 0, 'ignore_eos': True, 'cache_prompt': False})
        prompts[length] = length / (time.perf_counter() - before)
    times, counts, chunks, asked = [], [], [], time.perf_counter()

    def note(chunk: dict) -> None:
        times.append(time.perf_counter())
        counts.append((device_bytes(), major_faults(), cpu_seconds()))
        chunks.append(chunk)

    server.handle_completions({
        'prompt': job['tokens'], 'n_predict': job['new_tokens'], 'temperature': 0,
        'ignore_eos': True, 'cache_prompt': False, 'stream': True}, note)
    times, counts, usage = times[:-1], counts[:-1], chunks[-1].get('usage', chunks[-1])
    if len(times) != job['new_tokens'] or usage['prompt_tokens'] != len(job['tokens']):
        raise SystemExit(f'{len(times)} pieces, {usage}: not the tokens that were asked for')
    bytes_read, faults, cpu = (b - a for a, b in zip(counts[0], counts[-1], strict=True))
    print(json.dumps({
        'open_seconds': opened - begin, 'first_token_seconds': times[0] - asked,
        'prompt_tokens_per_second': prompts,
        'token_seconds': [b - a for a, b in pairwise(times)],
        'decode_seconds': chunks[-1]['timings']['predicted_ms'] / 1e3,
        'text': ''.join(chunk['choices'][0]['text'] for chunk in chunks), 'bytes': bytes_read,
        'reads': faults, 'cpu_seconds': cpu, 'peak': peak_resident_bytes(),
        'version': xllamacpp.__version__}))


if __name__ == '__main__':
    main()
