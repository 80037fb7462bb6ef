"""An engine that is being opened, as the watchdog sees it."""

from flash_llm_ros.engine import Engine


class Opening:
    """Counts how far it has come; what the engine itself reads and computes is counted by it."""

    def __init__(self) -> None:
        self._steps = 0
        self.engine: Engine | None = None   # once it is open, while the system prompt is computed

    def step(self) -> None:
        """Note that a piece of the store was read."""
        self._steps += 1

    @property
    def progress(self) -> tuple[int, ...]:
        """Changes with everything that is done."""
        engine = self.engine
        return (self._steps, *([] if engine is None else engine.flash_counters().values()))
