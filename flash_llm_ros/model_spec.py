"""What the engine must know of a model, whatever file it came from."""

from dataclasses import asdict, dataclass
import math
from typing import Any

from flash_llm_ros.activation import ACTIVATIONS, Array
from flash_llm_ros.checked_fields import (
    check,
    check_choice,
    check_integers,
    check_numbers,
)

NORMS = ('rms', 'layer')
POSITIONS = ('rotary', 'learned')


@dataclass(frozen=True)
class AttentionSpec:
    """Grouped-query attention."""

    heads: int
    kv_heads: int
    head_dim: int
    bias: bool = False                  # on queries, keys and values
    output_bias: bool = False

    def __post_init__(self) -> None:
        check_integers(self, ('heads', 'kv_heads', 'head_dim'))
        check(self.heads % self.kv_heads == 0, 'kv_heads', self.kv_heads,
              f'a divisor of heads, {self.heads}')

    @property
    def query_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Of the keys, and of the values."""
        return self.kv_heads * self.head_dim

    @property
    def qkv_width(self) -> int:
        return self.query_width + 2 * self.kv_width


@dataclass(frozen=True)
class ExpertsSpec:
    """A mixture of experts: a router chooses some of a layer's blocks for each token.

    A block's weight is its share of the softmax of all scores.
    """

    count: int                          # of a layer
    active: int                         # of a token
    normalised: bool = True             # the weights of those chosen are made to add up to 1

    def __post_init__(self) -> None:
        check_integers(self, ('count', 'active'))
        check(self.count > 1, 'count', self.count, 'at least 2')
        check(self.active <= self.count, 'active', self.active, f'at most count, {self.count}')


@dataclass(frozen=True)
class FeedForwardSpec:
    """down(activation(gate x) * up x), or down(activation(up x)) where there is no gate."""

    size: int                           # neurons, of each expert where there are some
    activation: str
    gated: bool = True
    bias: bool = False                  # on up rows and on the block's output; ungated only
    relu_threshold: float = 0.0         # relu is 0 up to here (FATReLU, arXiv 2402.13516)
    experts: ExpertsSpec | None = None  # the block is one of many

    def __post_init__(self) -> None:
        check_integers(self, ('size',))
        check_choice(self, 'activation', ACTIVATIONS)
        check_numbers(self, ('relu_threshold',), lambda value: value >= 0, 'a number from 0 on')
        check(not (self.gated and self.bias), 'bias', self.bias, 'false in a block with a gate')
        check(self.experts is None or (self.gated and not self.relu_threshold), 'experts',
              self.experts, 'none in a block without gate or with a threshold')

    @property
    def sparse_by_nature(self) -> bool:
        """Whether most activations are exact zeros, so that a predictor may decide.

        Experts are used as a whole, also those whose neurons would be of that kind.
        """
        return ACTIVATIONS[self.activation].sparse and self.experts is None

    @property
    def text(self) -> str:
        """For people: ``1536 neurons (silu)``, or ``8 of 64 experts of 1024 neurons (silu)``."""
        text = f'{self.size} neurons ({self.activation})'
        if self.experts is None:
            return text
        return f'{self.experts.active} of {self.experts.count} experts of {text}'

    def activate(self, z: Array) -> Array:
        """The activation function of each value."""
        return ACTIVATIONS[self.activation].function(z, self.relu_threshold)


@dataclass(frozen=True)
class NormSpec:
    kind: str                           # rms, or layer, with biases
    eps: float
    first: bool = True                  # else after attention and block are added

    def __post_init__(self) -> None:
        check_choice(self, 'kind', NORMS)
        check_numbers(self, ('eps',), lambda value: value > 0, 'a positive number')


@dataclass(frozen=True)
class PositionSpec:
    kind: str                           # rotary or learned
    theta: float = 10000.0              # rotary
    factors: tuple[float, ...] = ()     # divide the rotary inverse frequencies, [head_dim / 2]
    offset: int = 0                     # rows of the learned table before position 0

    def __post_init__(self) -> None:
        check_choice(self, 'kind', POSITIONS)
        check_numbers(self, ('theta',), lambda value: value > 0, 'a positive number')
        check_integers(self, ('offset',), least=0)
        check(all(math.isfinite(factor) and factor > 0 for factor in self.factors),
              'factors', self.factors, 'positive numbers')


@dataclass(frozen=True)
class EmbeddingSpec:
    vocab_size: int
    tied: bool                          # whether the output head is the embedding

    def __post_init__(self) -> None:
        check_integers(self, ('vocab_size',))


@dataclass(frozen=True)
class ModelSpec:
    """A decoder-only transformer of equal layers."""

    name: str
    model_type: str
    hidden_size: int
    layers: int
    max_context: int                    # tokens
    attention: AttentionSpec
    feed_forward: FeedForwardSpec
    norm: NormSpec
    positions: PositionSpec
    embedding: EmbeddingSpec
    end_tokens: tuple[int, ...]
    begin_token: int | None = None      # put before every prompt when not None

    def __post_init__(self) -> None:
        check_integers(self, ('hidden_size', 'layers', 'max_context'))
        # What ONNX Runtime's GroupQueryAttention takes.
        step = 16 if self.positions.kind == 'rotary' else 8
        check(self.attention.head_dim % step == 0, 'attention.head_dim', self.attention.head_dim,
              f'a multiple of {step} with {self.positions.kind} positions')
        half = self.rotary_width // 2
        check(len(self.positions.factors) in (0, half), 'positions.factors',
              self.positions.factors, f'{half} values, half as many as a head turns')
        vocabulary = self.embedding.vocab_size
        begin = () if self.begin_token is None else (self.begin_token,)
        for name, tokens in (('end_tokens', self.end_tokens), ('begin_token', begin)):
            for token in tokens:
                check(isinstance(token, int) and 0 <= token < vocabulary, name, token,
                      f'in the vocabulary of {vocabulary}')

    @property
    def rotary_width(self) -> int:
        """How many of a head's numbers its position turns."""
        return self.attention.head_dim

    def to_dict(self) -> dict[str, Any]:
        """Nested mappings and lists, as YAML has them."""
        return _plain(asdict(self))


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    return list(value) if isinstance(value, tuple) else value
