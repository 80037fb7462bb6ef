"""Opens a store again and again in one process, and prints its plans and its memory as JSON."""

from collections.abc import Iterator
import gc
import json
from pathlib import Path
import sys
from typing import Any

from flash_llm_ros.engine import Engine, EngineConfig, GenerationRequest
from flash_llm_ros.engine.memory.process_memory import resident_bytes
from flash_llm_ros.engine.parts import Parts
from flash_llm_ros.engine.plan import PlanRow

BUDGET = 90_000_000
FALL_BACK = 'fall back'     # from gated to exact, each time, once gated is loaded


def openings(store: Path, mode: str, times: int) -> Iterator[dict[str, Any]]:
    bare = resident_bytes()
    for _ in range(times):
        engine = Engine.open(EngineConfig(store, BUDGET, 'auto' if mode == FALL_BACK else mode))
        list(engine.start(GenerationRequest('Who are you? ' * 20, max_tokens=20)))
        found = {'mode': engine.mode, 'planned': engine.plan.planned,
                 'resident weights': engine.plan.rows[0].bytes,
                 'resident': resident_bytes() - bare}
        engine.close()
        del engine
        gc.collect()
        yield {**found, 'after closing': resident_bytes() - bare}


def have_gated_fall_back() -> None:
    from flash_llm_ros.engine.mode import Choice
    import flash_llm_ros.engine.parts as module

    load = Parts.load

    def takes_more(parts: Parts) -> PlanRow:
        row = load(parts)
        return PlanRow(row.name, row.bytes + 10**9 * (parts.config.mode == 'gated'))

    Parts.load = takes_more
    module.ranked_modes = lambda *_: [Choice('gated', 'first'), Choice('exact', 'then')]


if __name__ == '__main__':
    if sys.argv[2] == FALL_BACK:
        have_gated_fall_back()
    print(json.dumps(list(openings(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])))))
