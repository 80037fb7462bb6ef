"""What a checkpoint comes to as a store, and what a token costs then; nothing is converted."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from flash_llm_ros.checkpoint.checkpoint import Checkpoint
from flash_llm_ros.convert.forecast import Forecast
from flash_llm_ros.convert.options import ConversionOptions
from flash_llm_ros.convert.trial_conversation import conversation_doubts
from flash_llm_ros.engine.config import EngineConfig
from flash_llm_ros.engine.parts import mode_choices
from flash_llm_ros.report.figures import BudgetFloor, budget_floors
from flash_llm_ros.store.device_profile import DeviceProfile
from flash_llm_ros.store.flash_store import RESIDENT, TOKENIZER, TOKENIZER_TABLES, FlashStore
from flash_llm_ros.store.geometry import ATTENTION_SECTIONS

_PLENTY = 1 << 50       # bytes, to see what is not the window
# What libraries take beside the weights that a plan knows before it is loaded, and what graphs of
# attention do.
_LIBRARIES, _GRAPHS = 1_500_000, 12_500_000


@dataclass(frozen=True)
class Prospect:
    """`floors`: budgets from the least on, as `budget_floors` gives them."""

    store: FlashStore               # as it would be
    disk_bytes: int                 # the most that the conversion has on disk at once
    parts: dict[str, int]           # of the store, bytes
    doubts: tuple[str, ...]
    floors: list[BudgetFloor]


def prospect(checkpoint: Checkpoint, options: ConversionOptions, profile: DeviceProfile | None,
             budgets: Sequence[int] = ()) -> Prospect:
    """Raises CheckpointError, FlashLlmError and ValueError for what `convert` refuses."""
    doubts = (*checkpoint.doubts, *conversation_doubts(checkpoint))
    forecast = Forecast(checkpoint, options)
    store = forecast.store(checkpoint.path)
    return Prospect(store, forecast.disk_bytes, _parts(store), doubts,
                    floors_of(store, profile, budgets))


def floors_of(store: FlashStore, profile: DeviceProfile | None, budgets: Sequence[int] = (),
              context: int = EngineConfig.context_length) -> list[BudgetFloor]:
    """Of a store that need not be there yet, and is not opened."""
    config = EngineConfig(store.path, _PLENTY, context_length=context)
    (choice, parts), *_ = mode_choices(config, store, None)
    plan = parts.plan()
    loading = _LIBRARIES + (0 if store.manifest.model.core_attention else _GRAPHS)
    plan = replace(plan, rows=(*plan.rows, replace(plan.rows[0], bytes=loading)))
    return budget_floors({choice.mode: plan}, store, profile, budgets)


def _parts(store: FlashStore) -> dict[str, int]:
    geometry, files = store.manifest.geometry, store.manifest.files
    bytes_of = {'feed-forward': 0, 'embedding': 0, 'head': 0, 'attention': files[RESIDENT]['bytes']}
    for section in geometry.sections:
        name = ('attention' if section.name in ATTENTION_SECTIONS else
                section.name if section.name in bytes_of else 'feed-forward')
        bytes_of[name] += section.all_groups * geometry.group_bytes
    bytes_of['tokenizer'] = sum(files[name]['bytes'] for name in (TOKENIZER, TOKENIZER_TABLES)
                                if name in files)
    return {name: size for name, size in bytes_of.items() if size}
