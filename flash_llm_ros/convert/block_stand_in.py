"""What stands before an engine's feed-forward block, to watch it or to change what it does."""

from flash_llm_ros.engine.model.feed_forward.block import FeedForwardBlock


class BlockStandIn:
    """Passes on all but `run`, which is for those that are made of it."""

    def __init__(self, inner: FeedForwardBlock) -> None:
        self._inner, self.begin = inner, inner.begin

    @property
    def active_neurons(self) -> int:
        return self._inner.active_neurons

    @property
    def total_neurons(self) -> int:
        return self._inner.total_neurons
