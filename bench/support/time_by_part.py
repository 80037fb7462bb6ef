"""Where the time of a block goes: ONNX Runtime, kernels, waiting for reads, Python."""

from collections.abc import Iterator
from contextlib import contextmanager
import cProfile
from dataclasses import dataclass, field
import pstats

from flash_llm_ros.engine import Engine

_CORE = '<built-in method flash_llm_ros._native.'
_RUNTIME = '<built-in method onnxruntime.'


@dataclass
class TimeByPart:
    """In seconds. `parts` add up to the whole; `calls` of the core have its waits in them."""

    parts: dict[str, float] = field(default_factory=dict)
    calls: dict[str, float] = field(default_factory=dict)


@contextmanager
def time_by_part(engine: Engine) -> Iterator[TimeByPart]:
    """Python's own profiler counts calls; the core itself counts what waits inside of it."""
    found, profile, before = TimeByPart(), cProfile.Profile(), engine.stats()
    profile.enable()
    try:
        yield found
    finally:
        profile.disable()
    after, runtime, rest = engine.stats(), 0.0, 0.0
    for (_, _, name), (_, _, own, _, _) in pstats.Stats(profile).stats.items():
        if name.startswith(_CORE):
            found.calls[name.removeprefix(_CORE).rstrip('>')] = own
        elif name.startswith(_RUNTIME):
            runtime += own
        else:
            rest += own
    waiting, claiming = ((after[name] - before[name]) / 1e9 for name in ('wait_ns', 'claim_ns'))
    found.parts = {
        'ONNX Runtime': runtime, 'kernels': sum(found.calls.values()) - waiting - claiming,
        'waiting for reads': waiting, 'finding slots': claiming, 'Python': rest}
