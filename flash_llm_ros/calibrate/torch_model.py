"""A llama-shaped model in PyTorch whose feed-forward blocks are exchanged; the rest is frozen.

Matrices are bfloat16, which processors with AMX or AVX512-BF16 multiply several times faster;
the residual stream, norms and losses stay float32. Shapes: B sequences of S tokens, d hidden.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
import torch
from torch import Tensor
from torch.nn import functional

from flash_llm_ros.engine.model.attention import rotary_tables
from flash_llm_ros.model_spec import ModelSpec

MATRIX = torch.bfloat16
FeedForward = Callable[[int, Tensor], Tensor]       # layer, [B, S, d] bfloat16 -> the same


class Weights(Protocol):
    """A checkpoint, or a store: tensors by the canonical names of a checkpoint."""

    spec: ModelSpec

    def rows(self, name: str) -> NDArray[np.float32]:
        """A whole tensor."""


@dataclass(frozen=True)
class FrozenLayer:
    """What stays as it is in a layer."""

    attention_norm: Tensor      # float32 [d]
    qkv: Tensor                 # bfloat16 [(heads + 2 kv_heads) * head_dim, d]
    qkv_bias: Tensor | None     # bfloat16, or None where the family has none
    o: Tensor                   # bfloat16 [d, heads * head_dim]
    ffn_norm: Tensor            # float32 [d]


@dataclass
class GatedWeights:
    """Gate and up [ffn, d] and down [d, ffn] of a layer, one dtype."""

    gate: Tensor
    up: Tensor
    down: Tensor


class KvCache:
    """Keys and values of the tokens so far, [B, kv_heads, tokens, head_dim] a layer."""

    def __init__(self) -> None:
        self._rows: dict[int, Tensor] = {}      # [2, B, kv_heads, room, head_dim]
        self._lengths: dict[int, int] = {}

    @property
    def length(self) -> int:
        """Tokens that went through every layer."""
        return min(self._lengths.values(), default=0)

    def add(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """All of them, these included."""
        start = self._lengths.get(layer, 0)
        stop = self._lengths[layer] = start + keys.shape[2]
        if layer not in self._rows or stop > self._rows[layer].shape[3]:
            room = keys.new_empty(2, *keys.shape[:2], 2 * stop, keys.shape[3])
            if start:
                room[:, :, :, :start] = self._rows[layer][:, :, :, :start]
            self._rows[layer] = room
        rows = self._rows[layer]
        rows[0, :, :, start:stop], rows[1, :, :, start:stop] = keys, values
        return rows[0, :, :, :stop], rows[1, :, :, :stop]


class TorchModel:
    """Runs any feed-forward blocks between the attention of one checkpoint."""

    def __init__(self, weights: Weights, context: int) -> None:
        self.spec = spec = weights.spec
        self._layers = [_frozen_layer(weights, layer) for layer in range(spec.layers)]
        self.embedding = _tensor(weights, 'embedding').to(MATRIX)
        self.head = (self.embedding if spec.embedding.tied
                     else _tensor(weights, 'head').to(MATRIX))
        self._final_norm = _tensor(weights, 'final_norm')
        cos, sin = rotary_tables(spec, context, np.float32)
        self._cos, self._sin = torch.from_numpy(cos), torch.from_numpy(sin)

    def run(self, tokens: Tensor, feed_forward: FeedForward,
            cache: KvCache | None = None) -> Tensor:
        """What enters the output head, bfloat16 [B, S, d], of tokens int64 [B, S].

        With a `cache`, which gets them, S is 1 and the tokens follow those in it.
        """
        start = cache.length if cache is not None else 0
        hidden = functional.embedding(tokens, self.embedding).float()
        for index, layer in enumerate(self._layers):
            hidden = hidden + self._attention(index, layer, hidden, start, cache)
            hidden = hidden + feed_forward(index, self._norm(hidden, layer.ffn_norm))
        return self._norm(hidden, self._final_norm)

    def _attention(self, index: int, layer: FrozenLayer, hidden: Tensor, start: int,
                   cache: KvCache | None) -> Tensor:
        spec, (batch, length, _) = self.spec.attention, hidden.shape
        normed = self._norm(hidden, layer.attention_norm)
        qkv = functional.linear(normed, layer.qkv, layer.qkv_bias)
        rows = qkv.view(batch, length, -1, spec.head_dim).transpose(1, 2)
        q, k, v = rows.split((spec.heads, spec.kv_heads, spec.kv_heads), 1)
        q, k = self._turned(q, start), self._turned(k, start)
        if cache is not None:
            k, v = cache.add(index, k, v)
        if spec.heads != spec.kv_heads:
            k, v = (part.repeat_interleave(spec.heads // spec.kv_heads, 1) for part in (k, v))
        mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=length > 1)
        return functional.linear(mixed.transpose(1, 2).reshape(batch, length, -1), layer.o)

    def _turned(self, rows: Tensor, start: int) -> Tensor:
        """Rotary positions, in the order of halves."""
        places = slice(start, start + rows.shape[2])
        first, second = rows.float().chunk(2, -1)
        cos, sin = self._cos[places], self._sin[places]
        turned = torch.cat((first * cos - second * sin, second * cos + first * sin), -1)
        return turned.to(rows.dtype)

    def _norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(hidden, weight.shape, weight, self.spec.norm.eps).to(MATRIX)


def gated_weights(weights: Weights, layer: int, dtype: torch.dtype) -> GatedWeights:
    return GatedWeights(*(_tensor(weights, f'layers.{layer}.{part}').to(dtype)
                          for part in ('gate', 'up', 'down')))


def _frozen_layer(weights: Weights, layer: int) -> FrozenLayer:
    def tensor(part: str) -> Tensor:
        return _tensor(weights, f'layers.{layer}.{part}')

    bias = (torch.cat([tensor(f'{part}_bias') for part in 'qkv']).to(MATRIX)
            if weights.spec.attention.bias else None)
    return FrozenLayer(tensor('attention_norm'),
                       torch.cat([tensor(part) for part in 'qkv']).to(MATRIX), bias,
                       tensor('o').to(MATRIX), tensor('ffn_norm'))


def _tensor(weights: Weights, name: str) -> Tensor:
    return torch.from_numpy(np.array(weights.rows(name)))    # rows may be those of a mapped file
