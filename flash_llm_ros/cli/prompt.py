"""`flash_llm prompt`: the engine alone answers one prompt."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
import sys

from flash_llm_ros.cli.main import fail
from flash_llm_ros.engine import Engine, EngineConfig, GenerationRequest, SamplingParams
from flash_llm_ros.engine.byte_size import parse_byte_size
from flash_llm_ros.engine.process_memory import peak_resident_bytes
from flash_llm_ros.store.errors import FlashLlmError


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument('store', help='a flash store')
    parser.add_argument('prompt', help='what to ask')
    parser.add_argument('--budget', default='96MB', help='DRAM budget (default: 96MB)')
    parser.add_argument('--mode', choices=('exact', 'sparse'), default='exact')
    parser.add_argument('--context', type=int, default=512, help='tokens (default: 512)')
    parser.add_argument('--max-tokens', type=int, default=128)
    parser.add_argument('--system', default='', help='system prompt')
    parser.add_argument('--raw', action='store_true', help='leave the chat template out')
    parser.add_argument('--temperature', type=float, default=0.0, help='0: greedy (default)')
    parser.add_argument('--seed', type=int, default=0)


def run(options: Namespace) -> int:
    try:
        config = EngineConfig(Path(options.store), parse_byte_size('budget', options.budget),
                              options.mode, context_length=options.context)
        engine = Engine.open(config, lambda line: print(line, file=sys.stderr))
        try:
            sampling = SamplingParams(temperature=options.temperature, seed=options.seed)
            generation = engine.start(GenerationRequest(
                options.prompt, options.system, options.raw, sampling, options.max_tokens))
            for piece in generation:
                print(piece, end='', flush=True)
        finally:
            engine.close()
    except FlashLlmError as error:
        return fail(error)
    cost = generation.stats
    tokens = max(cost.generated_tokens, 1)
    print(f'\n\n{engine.plan.table()}\n'
          f'{cost.prompt_tokens} + {cost.generated_tokens} tokens, first after '
          f'{cost.time_to_first_token:.2f} s, then {cost.tokens_per_second:.1f} a second; '
          f'{cost.flash_bytes / 1e6 / tokens:.1f} MB in {cost.flash_reads / tokens:.0f} reads a '
          f'token, read with {engine.reader}; '
          f'peak RSS {peak_resident_bytes() / 1e6:.0f} MB', file=sys.stderr)
    return 0
