"""What a trial does with an engine: each way in which bytes of a store become text."""

from collections.abc import Callable
from dataclasses import dataclass, field
import json
from pathlib import Path
import re
from typing import Any

from flash_llm_ros.engine import (
    Constraint,
    ConstraintKind,
    Engine,
    EngineConfig,
    GenerationRequest,
    SamplingParams,
)
from flash_llm_ros.store.errors import ErrorCode, FlashLlmError

PROMPT = 'Where is the red box, and who has put it there?'      # some chunks of 16
SYSTEM = 'You are the voice of a robot with two wheels. ' * 2
SCHEMA = {'type': 'object', 'properties': {'x': {'type': 'integer'}, 'y': {'enum': ['on', 'off']}},
          'required': ['x', 'y'], 'additionalProperties': False}
READERS = ('io_uring', 'threads')


def ask(engine: Engine, prompt: str = PROMPT, **options: Any) -> str:
    """Drawn at random from all tokens, so that a small change of the numbers changes the text."""
    return ''.join(engine.start(GenerationRequest(prompt, **{
        'raw': True, 'max_tokens': 12, 'sampling': SamplingParams(temperature=1.0, seed=3),
        **options})))


def _plain(engine: Engine) -> list[str]:
    return [ask(engine)]


def _constrained(engine: Engine) -> list[str]:
    return [ask(engine, max_tokens=60,
                constraint=Constraint(ConstraintKind.JSON_SCHEMA, json.dumps(SCHEMA)))]


def _sessions(engine: Engine) -> list[str]:
    """Two that take turns: each lies on flash while the other one speaks."""
    return [ask(engine, f'{turn} {name}?', raw=False, max_tokens=6, session_id=name)
            for turn in ('Who is', 'And') for name in 'ab']


def _kept_prompt(engine: Engine) -> list[str]:
    """Written, read again after something else, and read by the next request."""
    engine.keep_system_prompt(SYSTEM)
    texts = []
    for prompt in ('Hello', 'And now?'):
        texts += [ask(engine, 'x', max_tokens=2),
                  ask(engine, prompt, raw=False, max_tokens=6, system_prompt=SYSTEM,
                      keep_system_prompt=True)]
    return texts


@dataclass(frozen=True)
class Use:
    """A store, the options that it is opened with, and what is asked."""

    store: str
    texts: Callable[[Engine], list[str]]
    options: dict[str, Any] = field(default_factory=dict)

    def open(self, stores: Path, folder: Path, budget: int, log: Callable[[str], None],
             **options: Any) -> Engine:
        """`folder` has what the engine keeps, and the store itself where a trial damages one."""
        store = folder / 'store' if (folder / 'store').exists() else stores / self.store
        return Engine.open(EngineConfig(store, budget, **{
            'context_length': 256, 'prefill_chunk': 16, 'session_folder': folder / 'kept',
            **self.options, **options}), log)


USES = {
    'exact': Use('exact', _plain, {'mode': 'exact'}),
    'gated': Use('gated', _plain, {'mode': 'gated'}),
    'constrained': Use('exact', _constrained, {'structured': True}),
    'session': Use('exact', _sessions),
    'kept prompt': Use('gated', _kept_prompt, {'mode': 'gated'}),
}


def least_budget(use: Use, stores: Path, folder: Path, reader: str) -> int:
    """Bytes of a window in which little is pinned, so that most is read while text is made."""
    budget = 1
    for _ in range(6):      # what loading takes is measured, so the demand moves a little
        try:
            use.open(stores, folder, budget, lambda line: None, reader=reader).close()
            return budget + 300_000
        except FlashLlmError as error:
            if error.code is not ErrorCode.BUDGET_TOO_SMALL:
                raise
            least = re.search(r'needs at least ([\d.]+) MB', str(error))
            budget = int(float(least.group(1)) * 1e6) + 100_000
    raise RuntimeError(f'{budget} bytes were asked for and then not enough')
