"""How many neurons each layer may leave out, so that all lose the least together."""

import numpy as np
from numpy.typing import NDArray


def allocate(losses: NDArray[np.floating], left_out: tuple[float, ...],
             total: float) -> list[int]:
    """Steps of each layer, so that layers leave out at least `total` of their neurons on average.

    `losses` [layers, steps] is what a layer loses when it leaves out the share `left_out[step]`;
    both grow with the step, and step 0 leaves out nothing. Greedy, as in TEAL (arXiv 2408.14690):
    always the layer whose next step costs least per neuron.
    """
    steps = [0] * len(losses)
    grid = np.array(left_out)
    if total > grid[-1]:
        raise ValueError(f'total is {total}; it must be at most {grid[-1]}')
    price = np.diff(losses, axis=1) / np.diff(grid)
    while grid[steps].mean() < total - 1e-9:
        layer = min((layer for layer, step in enumerate(steps) if step + 1 < len(grid)),
                    key=lambda layer: price[layer, steps[layer]])
        steps[layer] += 1
    return steps
