"""What the engine must know of a model, whatever file it came from."""

from dataclasses import MISSING, asdict, dataclass, fields
import math
from typing import Any

ACTIVATIONS = ('silu', 'relu')
NORMS = ('rms', 'layer')
POSITIONS = ('rotary', 'learned')


@dataclass(frozen=True)
class ModelSpec:
    """The shape of a decoder-only transformer. What OPT has otherwise than llama comes last."""

    name: str
    model_type: str
    hidden_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_size: int
    vocab_size: int
    max_context: int
    norm_eps: float
    rope_theta: float                   # used by rotary positions only
    activation: str
    tied_embeddings: bool
    end_tokens: tuple[int, ...]
    begin_token: int | None = None      # put before every prompt when not None
    attention_bias: bool = False        # on queries, keys and values
    rope_factors: tuple[float, ...] = ()  # divide the inverse frequencies, [head_dim / 2]
    relu_threshold: float = 0.0         # relu is 0 up to here (FATReLU, arXiv 2402.13516)
    gated: bool = True                  # or the activation function takes the up rows
    ffn_bias: bool = False              # on up rows and on the block's output; ungated only
    output_bias: bool = False           # on the attention's output
    norm: str = 'rms'                   # or layer, with biases
    norm_first: bool = True             # else after attention and block are added
    positions: str = 'rotary'           # or learned
    position_offset: int = 0            # rows of the learned table before position 0

    def __post_init__(self) -> None:
        for name in ('hidden_size', 'layers', 'heads', 'kv_heads', 'head_dim', 'ffn_size',
                     'vocab_size', 'max_context'):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value <= 0:
                raise ValueError(f'{name} is {value!r}; it must be a positive integer')
        for name in ('norm_eps', 'rope_theta'):
            value = getattr(self, name)
            if not (isinstance(value, (int, float)) and math.isfinite(value) and value > 0):
                raise ValueError(f'{name} is {value!r}; it must be a positive number')
        if self.heads % self.kv_heads:
            raise ValueError(f'heads is {self.heads} and kv_heads {self.kv_heads}; '
                             'heads must be a multiple of kv_heads')
        if self.head_dim % 2:
            raise ValueError(f'head_dim is {self.head_dim}; it must be even')
        if self.activation not in ACTIVATIONS:
            raise ValueError(f'activation is {self.activation!r}; supported are '
                             f'{", ".join(ACTIVATIONS)}')
        for name, known in (('norm', NORMS), ('positions', POSITIONS)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f'{name} is {value!r}; it must be one of {", ".join(known)}')
        if not (math.isfinite(self.relu_threshold) and self.relu_threshold >= 0):
            raise ValueError(f'relu_threshold is {self.relu_threshold!r}; it must be a number '
                             'from 0 on')
        if not self.gated and self.activation != 'relu':
            raise ValueError(f'activation is {self.activation!r}; a block without gate must '
                             'have relu')
        if self.gated and self.ffn_bias:
            raise ValueError('ffn_bias is true; a block with a gate must have no biases')
        if self.rope_factors and len(self.rope_factors) != self.head_dim // 2:
            raise ValueError(f'rope_factors has {len(self.rope_factors)} values; it must have '
                             f'head_dim / 2 = {self.head_dim // 2}')
        if not all(math.isfinite(factor) and factor > 0 for factor in self.rope_factors):
            raise ValueError('rope_factors must be positive numbers')
        for token in (*self.end_tokens,
                      *(() if self.begin_token is None else (self.begin_token,))):
            if not isinstance(token, int) or not 0 <= token < self.vocab_size:
                raise ValueError(f'token id {token!r} is outside of the vocabulary of '
                                 f'{self.vocab_size}')

    @property
    def sparse_by_nature(self) -> bool:
        """Whether most activations are exact zeros, so that a predictor may decide."""
        return self.activation == 'relu'

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), 'end_tokens': list(self.end_tokens),
                'rope_factors': list(self.rope_factors)}

    @classmethod
    def from_dict(cls, data: Any) -> 'ModelSpec':
        """Raises ValueError naming what is missing or unknown."""
        if not isinstance(data, dict):
            raise ValueError('the model specification must be a mapping')
        names = {f.name for f in fields(cls)}
        optional = {f.name for f in fields(cls) if f.default is not MISSING}
        if missing := names - optional - data.keys():
            raise ValueError(f'the model specification lacks {", ".join(sorted(missing))}')
        if unknown := data.keys() - names:
            raise ValueError(f'the model specification has unknown {", ".join(sorted(unknown))}')
        data = dict(data)
        data['end_tokens'] = tuple(data['end_tokens'])
        data['rope_factors'] = tuple(data.get('rope_factors', ()))
        return cls(**data)
