"""What the engine must know of a model, whatever file it came from."""

from dataclasses import dataclass, fields, is_dataclass
import math
from typing import Any

from flash_llm_ros.activation import ACTIVATIONS, SPARSE, Array
from flash_llm_ros.checked_fields import (
    check,
    check_choice,
    check_integers,
    check_numbers,
)

NORMS = ('rms', 'layer')
POSITIONS = ('rotary', 'learned')
QK_NORMS = ('none', 'head', 'width')
SHARES = ('softmax', 'sigmoid')


@dataclass(frozen=True)
class AttentionSpec:
    """Grouped-query attention."""

    heads: int
    kv_heads: int
    head_dim: int
    bias: bool = False                  # on queries, keys and values
    output_bias: bool = False
    qk_norm: str = 'none'               # of each head of queries and keys, or of their whole width
    soft_cap: float = 0.0               # scores are cap * tanh(score / cap); 0: as they are
    windows: tuple[int, ...] = ()       # how far each layer looks back; 0, or no windows: on all
    sinks: bool = False                 # a score of each head's own that shares in the softmax

    def __post_init__(self) -> None:
        check_integers(self, ('heads', 'kv_heads', 'head_dim'))
        check_choice(self, 'qk_norm', QK_NORMS)
        check_numbers(self, ('soft_cap',), lambda value: value >= 0, 'a number from 0 on')
        check(all(window >= 0 for window in self.windows), 'windows', self.windows,
              'tokens, from 0 on')
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

    def window(self, layer: int) -> int:
        """How many tokens a layer looks back on, the newest included; 0: all."""
        return self.windows[layer] if self.windows else 0


@dataclass(frozen=True)
class ExpertsSpec:
    """A mixture of experts: a router chooses some of a layer's blocks for each token.

    Beside them a layer may have a block that every token uses; the first layers may have only one.
    """

    count: int                          # of a layer
    active: int                         # of a token
    normalised: bool = True             # the weights of those chosen are made to add up to 1
    shares: str = 'softmax'             # what a block is weighed by: of all scores, or of its own
    corrected: bool = False             # a bias of each counts for choosing, not for weighing
    groups: int = 1                     # of neighbours, ranked by the sum of their two best
    active_groups: int = 1              # those that a token's experts are chosen from
    scale: float = 1.0                  # of all weights
    least_sum: float = 1e-20            # added to that of weights that may all be 0
    sum_clamped: bool = False           # to least_sum, which is not added
    shared: int = 0                     # neurons of the block that every token uses; 0: none
    shared_weighed: bool = False        # by a sigmoid of a score of its own
    biased: bool = False                # the router's scores and all rows of experts
    dense_layers: int = 0               # without experts
    dense_size: int = 0                 # neurons of the block they have instead

    def __post_init__(self) -> None:
        check_integers(self, ('count', 'active', 'groups', 'active_groups'))
        check_integers(self, ('shared', 'dense_layers', 'dense_size'), least=0)
        check_choice(self, 'shares', SHARES)
        check_numbers(self, ('scale', 'least_sum'), lambda value: value > 0, 'a positive number')
        check(self.count > 1, 'count', self.count, 'at least 2')
        check(self.active <= self.count, 'active', self.active, f'at most count, {self.count}')
        check(self.count % self.groups == 0 and (self.groups == 1 or self.count >= 2 * self.groups),
              'groups', self.groups, f'1, or so many that {self.count} experts make equal groups '
              'of at least 2')
        check(self.active_groups <= self.groups, 'active_groups', self.active_groups,
              f'at most groups, {self.groups}')
        check(self.active <= self.active_groups * self.count // self.groups, 'active', self.active,
              f'no more than {self.active_groups} of {self.groups} groups have')
        check(self.shared > 0 or not self.shared_weighed, 'shared_weighed', self.shared_weighed,
              'false without shared neurons')
        check(not (self.biased and self.shared), 'biased', self.biased,
              'false beside shared neurons')
        check((self.dense_layers > 0) == (self.dense_size > 0), 'dense_size', self.dense_size,
              f'that of {self.dense_layers} dense layers')


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
        check(self.experts is not None or self.activation != 'clamped_swiglu', 'activation',
              self.activation, 'another one in a block without experts')
        check(self.experts is None or (self.gated and not self.relu_threshold), 'experts',
              self.experts, 'none in a block without gate or with a threshold')

    @property
    def sparse_by_nature(self) -> bool:
        """Whether most activations are exact zeros, so that a predictor may decide.

        Experts are used as a whole, also those whose neurons would be of that kind.
        """
        return self.activation in SPARSE and self.experts is None

    def always(self, layer: int) -> int:
        """Neurons of the block of a layer that every token uses; 0 where there is none."""
        if self.experts is None:
            return self.size
        return self.experts.shared if self.routed(layer) else self.experts.dense_size

    def routed(self, layer: int) -> bool:
        """Whether a layer has experts."""
        return self.experts is not None and layer >= self.experts.dense_layers

    @property
    def text(self) -> str:
        """For people: ``1536 neurons (silu)``, or ``8 of 64 experts of 1024 neurons (silu)``."""
        text = f'{self.size} neurons ({self.activation})'
        if self.experts is None:
            return text
        shared = f', {self.experts.shared} of every token' if self.experts.shared else ''
        return f'{self.experts.active} of {self.experts.count} experts of {text}{shared}'

    def activate(self, z: Array) -> Array:
        """The activation function of each value."""
        return ACTIVATIONS[self.activation](z, self.relu_threshold)


@dataclass(frozen=True)
class NormSpec:
    kind: str                           # rms, or layer, with biases
    eps: float
    first: bool = True                  # of what attention and block are given
    output: bool = False                # of what they give; neither: of its sum with the stream
    parallel: bool = False              # the block is given what attention is given

    def __post_init__(self) -> None:
        check_choice(self, 'kind', NORMS)
        check_numbers(self, ('eps',), lambda value: value > 0, 'a positive number')
        check(not self.parallel or (self.first and not self.output), 'parallel', self.parallel,
              'false unless norms are first, and only there')


@dataclass(frozen=True)
class PositionSpec:
    kind: str                           # rotary or learned
    theta: float = 10000.0              # rotary
    factors: tuple[float, ...] = ()     # divide the rotary inverse frequencies, [width / 2]
    offset: int = 0                     # rows of the learned table before position 0
    width: int | None = None            # how many of a head's numbers turn; None: all
    scale: float = 1.0                  # of what has turned
    short_context: int = 0              # a cache of so many tokens has factors of its own
    short_factors: tuple[float, ...] = ()
    local_theta: float | None = None    # of layers with a window, which have no factors then
    skipped: tuple[int, ...] = ()       # layers without positions

    def __post_init__(self) -> None:
        check_choice(self, 'kind', POSITIONS)
        positive = lambda value: value > 0, 'a positive number'
        check_numbers(self, ('theta', 'scale'), *positive)
        if self.local_theta is not None:
            check_numbers(self, ('local_theta',), *positive)
        check_integers(self, ('offset', 'short_context'), least=0)
        for name in ('factors', 'short_factors'):
            check(all(math.isfinite(factor) and factor > 0 for factor in getattr(self, name)),
                  name, getattr(self, name), 'positive numbers')

    def turns(self, layer: int) -> bool:
        """Whether a layer's queries and keys are turned by their positions."""
        return self.kind == 'rotary' and layer not in self.skipped


@dataclass(frozen=True)
class ConvolutionSpec:
    """Layers with a gated short convolution in the place of attention (LFM2, arXiv 2511.23404)."""

    layers: tuple[int, ...]
    taps: int                           # tokens that it is of, the newest included

    def __post_init__(self) -> None:
        check_integers(self, ('taps',), least=2)
        check(len(self.layers) > 0 and list(self.layers) == sorted({*self.layers})
              and self.layers[0] >= 0, 'layers', self.layers, 'numbers of layers, in their order')

    @property
    def before(self) -> int:
        """How many tokens before the newest it is of."""
        return self.taps - 1


@dataclass(frozen=True)
class EmbeddingSpec:
    vocab_size: int
    tied: bool                          # whether the output head is the embedding

    def __post_init__(self) -> None:
        check_integers(self, ('vocab_size',))


@dataclass(frozen=True)
class ModelSpec:
    """A decoder-only transformer; its layers are equal but for what has a list of layers."""

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
    logit_cap: float = 0.0              # logits are cap * tanh(logit / cap); 0: as they are
    convolution: ConvolutionSpec | None = None

    def __post_init__(self) -> None:
        check_integers(self, ('hidden_size', 'layers', 'max_context'))
        check(self.max_context < 2**31, 'max_context', self.max_context, 'less than 2^31 tokens')
        check_numbers(self, ('logit_cap',), lambda value: value >= 0, 'a number from 0 on')
        check(len(self.attention.windows) in (0, self.layers), 'attention.windows',
              self.attention.windows, f'one for each of {self.layers} layers')
        for name, value in (('attention.sinks', self.attention.sinks),
                            ('norm.output', self.norm.output)):
            check(not value or self.core_attention, name, value,
                  'false with layer norms, learned positions or a bias on the block')
        if (experts := self.feed_forward.experts) is not None:
            check(experts.dense_layers < self.layers, 'feed_forward.experts.dense_layers',
                  experts.dense_layers, f'fewer than all {self.layers} layers')
        if (convolution := self.convolution) is not None:
            check(self.core_attention and self.norm.first and not self.norm.output, 'convolution',
                  convolution, 'none unless the core computes attention, and norms are first only')
            check(convolution.layers[-1] < self.layers, 'convolution.layers', convolution.layers,
                  f'some of {self.layers} layers')
        self._check_turned()
        self._check_tokens()

    def _check_turned(self) -> None:
        """ONNX Runtime's GroupQueryAttention takes only some widths."""
        positions, head = self.positions, self.attention.head_dim
        step = 16 if positions.kind == 'rotary' else 8
        check(head % step == 0, 'attention.head_dim', head,
              f'a multiple of {step} with {positions.kind} positions')
        width = self.rotary_width
        check(0 < width <= head and width % step == 0, 'positions.width', width,
              f'a multiple of {step} up to the head size {head}')
        for name in ('factors', 'short_factors'):
            factors = getattr(positions, name)
            check(len(factors) in (0, width // 2), f'positions.{name}', factors,
                  f'{width // 2} values, half as many as a head turns')

    def _check_tokens(self) -> None:
        vocabulary = self.embedding.vocab_size
        begin = () if self.begin_token is None else (self.begin_token,)
        for name, tokens in (('end_tokens', self.end_tokens), ('begin_token', begin)):
            for token in tokens:
                check(isinstance(token, int) and 0 <= token < vocabulary, name, token,
                      f'in the vocabulary of {vocabulary}')

    @property
    def core_attention(self) -> bool:
        """Whether the core computes attention; else ONNX Runtime does, by the layers' graphs."""
        norm, block = self.norm, self.feed_forward
        return (norm.kind == 'rms' and (norm.first or norm.output) and not norm.parallel
                and self.positions.kind == 'rotary' and not block.bias)

    def convolves(self, layer: int) -> bool:
        """Whether a layer has a convolution in the place of attention."""
        return self.convolution is not None and layer in self.convolution.layers

    def cached_width(self, layer: int) -> int:
        """Numbers that a layer's cache has of each token: key and value, or what is convolved."""
        return self.hidden_size if self.convolves(layer) else 2 * self.attention.kv_width

    def local(self, layer: int) -> bool:
        """Whether a layer's positions turn with a wavelength of their own."""
        return self.positions.local_theta is not None and self.attention.window(layer) > 0

    @property
    def routed_layers(self) -> range:
        """Layers with experts."""
        experts = self.feed_forward.experts
        return range(0) if experts is None else range(experts.dense_layers, self.layers)

    @property
    def foreseeing_layers(self) -> range:
        """Layers of experts whose input tells those of the next one, by a predictor."""
        return self.routed_layers[:-1]

    @property
    def rotary_width(self) -> int:
        """How many of a head's numbers its position turns."""
        width = self.positions.width
        return self.attention.head_dim if width is None else width

    def rotary_frequencies(self, context: int, local: bool = False) -> list[float]:
        """By which a token's position turns each pair of a head's numbers (arXiv 2104.09864).

        `context`: tokens of the KV cache; `local`: of layers that have a wavelength of their own.
        """
        positions, width = self.positions, self.rotary_width
        theta = positions.local_theta if local else positions.theta
        factors = () if local else (positions.short_factors if context <= positions.short_context
                                    else positions.factors)
        return [theta ** (-2 * i / width) / (factors[i] if factors else 1)
                for i in range(width // 2)]

    def to_dict(self) -> dict[str, Any]:
        """Nested mappings and lists, as YAML has them, without what is as it is by default."""
        return _plain(self)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)
                if getattr(value, field.name) != field.default}
    return list(value) if isinstance(value, tuple) else value
