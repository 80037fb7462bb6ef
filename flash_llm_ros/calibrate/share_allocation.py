"""How many neurons each layer may leave out, so that all lose the least together."""

import numpy as np
from numpy.typing import NDArray


def allocate(losses: NDArray[np.floating], left_out: tuple[float, ...],
             total: float) -> list[int]:
    """Steps of each layer, so that layers leave out at least `total` of their neurons on average.

    `losses` [layers, steps] is what a layer loses when it leaves out the share `left_out[step]`;
    both grow with the step, and step 0 leaves out nothing. Greedy, as in TEAL (arXiv 2408.14690):
    always the layer whose next step costs least per neuron. No layer leaves out more than twice
    the average: the losses of layers are measured apart, and add up only while they are small.
    """
    if total > left_out[-1] + 1e-9:
        raise ValueError(f'total is {total}; it must be at most {left_out[-1]}')
    enough = next(share for share in left_out if share >= total - 1e-9)
    most = max(2 * total, enough) + 1e-9
    grid = np.array([share for share in left_out if share <= most])
    steps = [0] * len(losses)
    price = np.diff(losses[:, :len(grid)], axis=1) / np.diff(grid)
    while grid[steps].mean() < total - 1e-9:
        layer = min((layer for layer, step in enumerate(steps) if step + 1 < len(grid)),
                    key=lambda layer: price[layer, steps[layer]])
        steps[layer] += 1
    return steps
