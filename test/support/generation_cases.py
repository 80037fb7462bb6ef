"""What the tests of generation share: tight budgets and answers."""

from pathlib import Path
import re

import yaml

from flash_llm_ros.engine import Engine, EngineConfig, Generation, GenerationRequest
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

PLENTY = 60_000_000
PROMPTS = ('Hello there', 'The quick brown fox jumps over the lazy dog. ' * 3, 'x', 'naïve 日本 👍')
MODES = ('exact', 'gated')
# The kinds of blocks, with the modes that run them.
KINDS = {'exact': 'exact', 'gated': 'gated', 'experts': 'exact'}
TURNS = ('Who are you?', 'And what can you do?', 'Drive to the door')


def opened(store: Path, budget: int = PLENTY, **options: object) -> Engine:
    return Engine.open(EngineConfig(store, budget, **{'context_length': 512, **options}))


def opened_tightly(store: Path, **options: object) -> Engine:
    """An engine with next to the smallest window, so that what it uses is read again and again."""
    budget = 1
    for _ in range(6):      # what loading takes is measured, so the demand moves a little
        try:
            return opened(store, budget, **options)
        except FlashLlmError as error:
            assert error.code is ErrorCode.BUDGET_TOO_SMALL
            least = re.search(r'needs at least ([\d.]+) MB', str(error))
            budget = int(float(least.group(1)) * 1e6) + 10_000
    raise AssertionError(f'{budget} bytes were asked for and then not enough')


def request(prompt: str = PROMPTS[0], **options: object) -> GenerationRequest:
    return GenerationRequest(prompt, **{'raw': True, 'max_tokens': 30, **options})


def answer(engine: Engine, prompt: str = PROMPTS[0], **options: object) -> Generation:
    """A generation run to its end; its pieces are its text."""
    generation = engine.start(request(prompt, **options))
    assert ''.join(generation) == generation.text
    return generation


def say(engine: Engine, session: str, prompt: str, **options: object) -> Generation:
    """One turn of a conversation, run to its end."""
    return answer(engine, prompt, **{'session_id': session, 'raw': False, 'max_tokens': 12,
                                     **options})


def talk(engine: Engine, session: str, **options: object) -> list[list[int]]:
    return [say(engine, session, turn, **options).tokens for turn in TURNS]


def flash_uses(store: Path, prompt: list[int], tokens: list[int], chunk: int) -> int:
    """How many groups an exact answer of a split store uses, hits and misses together."""
    geometry = yaml.safe_load((store / 'manifest.yaml').read_text())['geometry']
    groups = {(part['name'], part['layer']): -(-part['bundles'] // part['bundles_per_group'])
              for part in geometry['sections']}
    embedding = next(part for part in geometry['sections'] if part['name'] == 'embedding')
    layers = sum(count for (_, layer), count in groups.items() if layer >= 0)
    chunks = [prompt[at:at + chunk] for at in range(0, len(prompt), chunk)]
    chunks += [[token] for token in tokens[:-1]]
    rows = sum(len({token // embedding['bundles_per_group'] for token in chunk})
               for chunk in chunks)
    return len(chunks) * layers + len(tokens) * groups['head', -1] + rows
