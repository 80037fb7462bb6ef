"""How far a head is turned, and how a model's settings stretch the wavelengths."""

import math
from typing import Any

from flash_llm_ros.model_spec import PositionSpec

Settings = dict[str, Any]
# Of files that have no share of a head, and a factor beside that of the kind.
GGUF_WIDTH, GGUF_SCALE = 'rope.dimension_count', 'rope.scaling.attn_factor'


def rope_settings(config: Settings) -> Settings:
    """What config.json has as rope_parameters, or, of older ones, as rope_scaling.

    ValueError where it has both and they say different things, and where they differ by layer.
    """
    new, old = config.get('rope_parameters') or {}, config.get('rope_scaling') or {}
    names = {'type': 'rope_type'}       # its older name
    if new and old and new != {names.get(name, name): value for name, value in old.items()}:
        raise ValueError(f'rope_scaling is {old} and rope_parameters is {new}; they must say the '
                         'same, or one of them must go')
    if by_layer := [name for name, value in (new or old).items() if isinstance(value, dict)]:
        raise ValueError(f'rope_parameters has {", ".join(by_layer)}; models of type '
                         f'{config["model_type"]} have the same in all layers')
    return new or old


def trained_context(rope: Settings, config: Settings) -> int:
    """Tokens of the texts that the model was first trained with."""
    return int(config.get('original_max_position_embeddings')
               or rope.get('original_max_position_embeddings') or config['max_position_embeddings'])


def rotary_positions(config: Settings, head_dim: int, rope: Settings, default_theta: float,
                     in_part: bool) -> PositionSpec:
    """Of heads of this size; `rope` as of `rope_settings`, `in_part`: whether a share may turn.

    ValueError for a kind that is not known here.
    """
    theta = float(rope.get('rope_theta') or config.get('rope_theta') or default_theta)
    share = rope.get('partial_rotary_factor', config.get('partial_rotary_factor', 1.0))
    if share != 1 and not in_part:
        raise ValueError(f'partial_rotary_factor is {share}; transformers turns whole heads in '
                         f'models of type {config["model_type"]}: it must be 1, or go')
    width = config.get(GGUF_WIDTH) or int(head_dim * share)
    kind = rope.get('rope_type') or rope.get('type') or 'default'
    if kind not in _KINDS:
        raise ValueError(f'rope scaling {kind!r} is not supported; supported are '
                         f'{", ".join(_KINDS)}')
    found = _KINDS[kind](rope, width, theta, config)
    found['scale'] = found.get('scale', 1.0) * config.get(GGUF_SCALE, 1.0)
    return PositionSpec('rotary', theta, width=None if width == head_dim else width, **found)


def _unscaled(rope: Settings, width: int, theta: float, config: Settings) -> Settings:
    """GGUF files may have factors that were worked out when they were made."""
    return {'factors': tuple(map(float, rope.get('factors', ())))}


def _linear(rope: Settings, width: int, theta: float, config: Settings) -> Settings:
    return {'factors': (float(rope['factor']),) * (width // 2)}


def _dynamic(rope: Settings, width: int, theta: float, config: Settings) -> Settings:
    """Nothing is stretched within max_position_embeddings, which is the most that we offer."""
    return {}


def _llama3(rope: Settings, width: int, theta: float, config: Settings) -> Settings:
    """Llama 3.1's scaling: long wavelengths are stretched, short ones kept, a ramp between."""
    factor, low, high = (float(rope[key]) for key in
                         ('factor', 'low_freq_factor', 'high_freq_factor'))
    original = trained_context(rope, config)

    def stretch(period: float) -> float:
        turns = original / (2 * math.pi * period)
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        return 1.0 / ((1.0 - smooth) / factor + smooth)

    return {'factors': tuple(stretch(theta ** (2 * i / width)) for i in range(width // 2))}


def _yarn(rope: Settings, width: int, theta: float, config: Settings) -> Settings:
    """YaRN (arXiv 2309.00071): as Llama 3.1's, but the ramp is even over the dimensions."""
    original = trained_context(rope, config)
    factor = float(rope['factor'] or config['max_position_embeddings'] / original)

    def dimension(turns: float) -> float:
        return width * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = dimension(float(rope.get('beta_fast') or 32))
    high = dimension(float(rope.get('beta_slow') or 1))
    if rope.get('truncate', True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)

    def stretch(i: int) -> float:
        ramp = min(max((i - low) / (high - low or 0.001), 0.0), 1.0)
        return 1.0 / (ramp / factor + 1.0 - ramp)

    scale = rope.get('attention_factor')
    if scale is None:
        top, bottom = rope.get('mscale'), rope.get('mscale_all_dim')
        scale = (_growth(factor, top) / _growth(factor, bottom) if top and bottom
                 else _growth(factor, 1.0))
    return {'factors': tuple(stretch(i) for i in range(width // 2)), 'scale': float(scale)}


def _growth(factor: float, weight: float) -> float:
    """By how much YaRN makes attention sharper."""
    return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0


def _longrope(rope: Settings, width: int, theta: float, config: Settings) -> Settings:
    """LongRoPE (arXiv 2402.13753): factors that were found by search, others for short contexts."""
    original = trained_context(rope, config)
    factor = float(rope.get('factor') or config['max_position_embeddings'] / original)
    scale = rope.get('attention_factor')
    if scale is None:
        scale = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(original))
    return {'factors': tuple(map(float, rope['long_factor'])), 'short_context': original,
            'short_factors': tuple(map(float, rope['short_factor'])), 'scale': float(scale)}


_KINDS = {'default': _unscaled, 'linear': _linear, 'dynamic': _dynamic, 'llama3': _llama3,
          'yarn': _yarn, 'longrope': _longrope}
