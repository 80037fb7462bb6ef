"""How a model's settings stretch the wavelengths of its rotary positions."""

import math
from typing import Any


def rope_settings(config: dict[str, Any]) -> dict[str, Any]:
    """What config.json has as rope_parameters, or, of older ones, as rope_scaling.

    ValueError where it has both and they say different things.
    """
    new, old = config.get('rope_parameters') or {}, config.get('rope_scaling') or {}
    names = {'type': 'rope_type'}       # its older name
    if new and any(new.get(names.get(name, name)) != value for name, value in old.items()):
        raise ValueError(f'rope_scaling is {old} and rope_parameters is {new}; they must say the '
                         'same, or one of them must go')
    return new or old


def rope_factors(rope: dict[str, Any], width: int, theta: float) -> tuple[float, ...]:
    """What divides each inverse frequency, [width / 2]; empty when nothing does.

    `rope` is what config.json has as rope_scaling. ValueError for a kind that is not known here.
    """
    kind = rope.get('rope_type') or rope.get('type') or 'default'
    if kind in ('default', 'none'):
        return ()
    if kind == 'linear':
        return (float(rope['factor']),) * (width // 2)
    if kind == 'llama3':
        return tuple(_llama3_factor(rope, theta ** (2 * i / width))
                     for i in range(width // 2))
    raise ValueError(f'rope scaling {kind!r} is not supported; supported are '
                     'default, linear and llama3')


def _llama3_factor(rope: dict[str, Any], period: float) -> float:
    """Llama 3.1's scaling: long wavelengths are stretched, short ones kept, a ramp between."""
    factor, low, high = (float(rope[key]) for key in
                         ('factor', 'low_freq_factor', 'high_freq_factor'))
    turns = int(rope['original_max_position_embeddings']) / (2 * math.pi * period)
    if turns < low:
        return factor
    if turns > high:
        return 1.0
    smooth = (turns - low) / (high - low)
    return 1.0 / ((1.0 - smooth) / factor + smooth)
