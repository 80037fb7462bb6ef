"""Which predictor each layer gets, within a byte budget for all."""

from typing import NamedTuple


class Candidate(NamedTuple):
    """Bytes of DRAM, and what they buy: more is better."""

    bytes: int
    value: float


def choose(layers: list[list[Candidate]], budget: int) -> list[int]:
    """The index of each layer's candidate.

    Every layer begins with its cheapest candidate, even where these exceed the budget together.
    Then steps along each layer's upper convex hull are taken, those first that gain most per byte.
    """
    chosen = [_cheapest(candidates) for candidates in layers]
    left = budget - sum(candidates[index].bytes
                        for candidates, index in zip(layers, chosen, strict=True))
    while True:
        steps = [step for layer, candidates in enumerate(layers)
                 if (step := _best_step(layer, candidates, chosen[layer], left)) is not None]
        if not steps:
            return chosen
        _, layer, index = max(steps, key=lambda step: step[0])
        left -= layers[layer][index].bytes - layers[layer][chosen[layer]].bytes
        chosen[layer] = index


def _cheapest(candidates: list[Candidate]) -> int:
    return min(range(len(candidates)), key=lambda i: (candidates[i].bytes, -candidates[i].value))


def _best_step(layer: int, candidates: list[Candidate], now: int,
               left: int) -> tuple[float, int, int] | None:
    """Gain per byte, layer and candidate of the steepest step that is affordable."""
    here = candidates[now]
    steps = [((other.value - here.value) / max(other.bytes - here.bytes, 1), layer, index)
             for index, other in enumerate(candidates)
             if other.value > here.value and 0 <= other.bytes - here.bytes <= left]
    return max(steps, default=None)
