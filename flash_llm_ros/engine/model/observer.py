"""Who watches the forward pass: recording for calibration, traces for measurements."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class ForwardObserver(Protocol):
    """Set as `Model.observer`; it sees every pass and changes nothing of it."""

    def feed_forward(self, layer: int, ffn_input: NDArray[np.float32],
                     active: NDArray[np.uint8] | None) -> None:
        """What entered a layer's block, float32 [tokens, d], and which neurons it used.

        Called once for every layer and pass, behind the block. `active`: 1 for each neuron that was
        used, uint8 [ffn], or for each expert, uint8 [experts]; None where all were. The arrays are
        valid during the call only.
        """
