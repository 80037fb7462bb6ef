"""One section of a neuron file, as the NumPy core keeps it."""

from dataclasses import dataclass

from flash_llm_ros.store.codec import RowCodec


@dataclass
class Section:
    """Consecutive groups of bundles; its first ``pinned`` groups are in slots from ``pin_slot``."""

    first_group: int
    bundles: int
    bundles_per_group: int
    rows: int
    codec: RowCodec
    pinned: int = 0
    pin_slot: int | None = None

    @property
    def groups(self) -> int:
        return -(-self.bundles // self.bundles_per_group)
