"""Greedy answers of llama.cpp, tokens and their log probabilities.

    python -m bench.support.llama_cpp_greedy MODEL.gguf '[[1, 2], ...]'

A process of its own, since its library and its threads stay. Prints JSON.
"""

import json
import os
import sys

import xllamacpp

NEW_TOKENS = 24


def main() -> None:
    path, prompts = sys.argv[1], json.loads(sys.argv[2])
    parameters = xllamacpp.CommonParams()
    parameters.model.path = path
    parameters.n_ctx = 512
    parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1
    parameters.cache_type_k = parameters.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    parameters.no_extra_bufts = True
    parameters.fit_params = parameters.warmup = False
    parameters.verbosity = -1
    server = xllamacpp.Server(parameters)
    answers = []
    for prompt in prompts:
        found = server.handle_completions({
            'prompt': prompt, 'n_predict': NEW_TOKENS, 'temperature': 0, 'ignore_eos': True,
            'cache_prompt': False, 'n_probs': 1})
        answers.append([(token['id'], token['logprob'])
                        for token in found['choices'][0]['logprobs']['content']])
    print(json.dumps(answers))
    sys.stdout.flush()
    os._exit(0)


if __name__ == '__main__':
    main()
