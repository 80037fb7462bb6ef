"""What the engine has moved since the node was activated."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Traffic:
    """Differences of two readings of ``Engine.stats()``."""

    flash_bytes: int = 0
    flash_reads: int = 0
    hits: int = 0
    misses: int = 0
    active_neurons: int = 0
    total_neurons: int = 0
    left_out: int = 0
    deadlines_missed: int = 0

    @classmethod
    def since(cls, start: dict[str, int], now: dict[str, int]) -> 'Traffic':
        """Return what was added to ``start``; both come from ``Engine.stats()``."""
        return cls(**{
            name: int(now[name]) - int(start.get(name, 0)) for name in cls.__dataclass_fields__})

    @property
    def hit_rate(self) -> float:
        """Share of the groups asked for that were in the window, [0, 1]; 0 before the first."""
        return self.hits / max(self.hits + self.misses, 1)

    @property
    def active_fraction(self) -> float:
        """Share of the FFN neurons that were used, [0, 1]; 0 before the first."""
        return self.active_neurons / max(self.total_neurons, 1)
