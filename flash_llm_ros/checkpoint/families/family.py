"""What an architecture family says of its checkpoints: the parts of its specification, its tensors.

A family reads the settings under the names that config.json has for them; `gguf_config` gives
those of a GGUF file under the same names.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
import re
from typing import Any, ClassVar

from flash_llm_ros.checkpoint.gguf_config import GgufConfig
from flash_llm_ros.checkpoint.weight_scales import WeightScales
from flash_llm_ros.model_spec import (
    AttentionSpec,
    ConvolutionSpec,
    EmbeddingSpec,
    FeedForwardSpec,
    ModelSpec,
    NormSpec,
    PositionSpec,
)

Config = dict[str, Any]


@dataclass(frozen=True)
class Tensor:
    """A tensor under the engine's name and those of the two kinds of files."""

    name: str               # as in layers.3.q; in a layer's own list only q
    huggingface: str
    gguf: str               # empty where the family has no GGUF files
    shape: tuple[int, ...]  # [out, in] of a matrix, [experts, out, in] of a layer's experts'
    interleaved_heads: int = 0  # GGUF pairs the rows of so many heads, as llama's paper turns them
    # Of experts, where `huggingface` has {} for the number of one: the tensor that may hold all of
    # them in its place, [experts, fused_rows, in], from its row `fused_first` on, every
    # `fused_step`-th row; turned: [experts, in, fused_rows].
    fused: str = ''
    fused_first: int = 0
    fused_rows: int = 0
    fused_step: int = 1
    fused_turned: bool = False
    huggingface_now: str = ''       # its name in newer files
    huggingface_interleaved: bool = False   # Hugging Face pairs those rows, too
    huggingface_plus: float = 0.0   # what Hugging Face's values lack
    first_row: int = 0      # of the tensor in the files, where it has more
    rows_stored: int = 0    # that tensor's; 0: as many
    gguf_apart: bool = False    # whether GGUF has these rows as a tensor of their own

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """Of the tensor in the files."""
        return (self.rows_stored or self.shape[0], *self.shape[1:])

    @property
    def fused_slice(self) -> slice:
        """Its rows of the fused tensor."""
        step = self.fused_step
        return slice(self.fused_first, self.fused_first + step * (self.shape[1] - 1) + 1, step)

    @property
    def blocks(self) -> str:
        """The tensor that may hold the fused one's values in MXFP4, [experts, fused_rows, blocks,
        16], scaled by `scales`."""
        return self.fused and f'{self.fused}_blocks'

    @property
    def scales(self) -> str:
        return self.fused and f'{self.fused}_scales'

    @property
    def split(self) -> bool:
        """Whether there is one for each expert."""
        return '{}' in self.huggingface

    @property
    def huggingface_names(self) -> tuple[str, ...]:
        """The names of all of its parts, one for each expert."""
        if not self.split:
            return (self.huggingface,)
        return tuple(self.huggingface.format(expert) for expert in range(self.shape[0]))


class Family(ABC):
    """One architecture. Every method but `tensors` raises ValueError for what is unsupported."""

    huggingface_layers = 'model.layers'
    defaults: ClassVar[Config] = {}               # of settings that checkpoints leave out
    tied_by_default = False             # whether the head is the embedding, where nothing says so
    caps: ClassVar[tuple[str, ...]] = ()          # of scores and logits, which are read
    # Tensors that are no weights of this list: of pictures, read elsewhere or worked out again.
    other_tensors = re.compile(r'rope_(freqs|factors_long|factors_short)\.weight|'
                               r'.*\.rotary_emb\.inv_freq|'
                               r'(model\.)?(vision_tower|multi_modal_projector)\..*')

    @abstractmethod
    def attention(self, config: Config) -> AttentionSpec: ...

    @abstractmethod
    def feed_forward(self, config: Config) -> FeedForwardSpec: ...

    @abstractmethod
    def norm(self, config: Config) -> NormSpec: ...

    @abstractmethod
    def positions(self, config: Config) -> PositionSpec: ...

    @abstractmethod
    def model_tensors(self, spec: ModelSpec) -> Iterator[Tensor]:
        """Those that are no layer's."""

    @abstractmethod
    def layer_tensors(self, spec: ModelSpec, layer: int) -> Iterator[Tensor]:
        """Those of a layer, in the order in which a token meets them."""

    def convolution(self, config: Config) -> ConvolutionSpec | None:
        """Which layers have one in the place of attention."""
        return None

    def scales(self, config: Config) -> WeightScales:
        """What the family multiplies with beside its weights."""
        return WeightScales()

    def cap(self, config: Config, name: str) -> float:
        """Of scores or logits; 0 for none."""
        value = config.get(name) or 0.0
        if value and name not in self.caps:
            raise ValueError(f'{name} is {value}; transformers has no such cap in models of type '
                             f'{config["model_type"]}: it must be null')
        return value

    def max_context(self, config: Config) -> int:
        return config['max_position_embeddings']

    def config_of_gguf(self, fields: dict[str, Any]) -> Config:
        """The metadata of a GGUF file as config.json would have it."""
        return GgufConfig(fields, self.defaults)

    def spec(self, config: Config, name: str, tied: bool, end_tokens: tuple[int, ...],
             begin_token: int | None) -> ModelSpec:
        """`tied`: whether the output head is the embedding. KeyError names a missing setting."""
        return ModelSpec(
            name=name, model_type=config['model_type'], hidden_size=config['hidden_size'],
            layers=config['num_hidden_layers'], max_context=self.max_context(config),
            attention=self.attention(config), feed_forward=self.feed_forward(config),
            norm=self.norm(config), positions=self.positions(config),
            embedding=EmbeddingSpec(config['vocab_size'], tied), end_tokens=end_tokens,
            begin_token=begin_token, logit_cap=self.cap(config, 'final_logit_softcapping'),
            convolution=self.convolution(config))

    def tensors(self, spec: ModelSpec) -> Iterator[Tensor]:
        """All that a checkpoint of this specification must have."""
        yield from self.model_tensors(spec)
        for layer in range(spec.layers):
            prefix = f'{self.huggingface_layers}.{layer}.'
            for tensor in self.layer_tensors(spec, layer):
                yield replace(
                    tensor, name=f'layers.{layer}.{tensor.name}', gguf=f'blk.{layer}.{tensor.gguf}',
                    huggingface=prefix + tensor.huggingface,
                    huggingface_now=tensor.huggingface_now and prefix + tensor.huggingface_now,
                    fused=tensor.fused and prefix + tensor.fused)

    def elsewhere(self, name: str, spec: ModelSpec) -> bool:
        """Whether a tensor that is none of `tensors` may be passed over."""
        return self.other_tensors.fullmatch(name) is not None


def matrix(name: str, huggingface: str, gguf: str, shape: tuple[int, int], bias: bool = False,
           interleaved_heads: int = 0, huggingface_interleaved: bool = False) -> Iterator[Tensor]:
    """A matrix [out, in], and what is added to its product."""
    yield Tensor(name, f'{huggingface}.weight', f'{gguf}.weight', shape, interleaved_heads,
                 huggingface_interleaved=huggingface_interleaved)
    if bias:
        yield Tensor(f'{name}_bias', f'{huggingface}.bias', f'{gguf}.bias', shape[:1],
                     interleaved_heads, huggingface_interleaved=huggingface_interleaved)


def parts(rows: dict[str, int], huggingface: str, gguf: str, columns: int) -> Iterator[Tensor]:
    """Matrices that the files have as one, one below the other; `rows` of each, by name.

    GGUF has each by itself where its name has {} for theirs.
    """
    first, stored = 0, sum(rows.values())
    for name, count in rows.items():
        yield Tensor(name, f'{huggingface}.weight', f'{gguf.format(name)}.weight',
                     (count, columns), first_row=first, rows_stored=stored,
                     gguf_apart='{}' in gguf)
        first += count


def norm(name: str, huggingface: str, gguf: str, size: int, spec: NormSpec,
         huggingface_plus: float = 0.0) -> Iterator[Tensor]:
    yield Tensor(name, f'{huggingface}.weight', f'{gguf}.weight', (size,),
                 huggingface_plus=huggingface_plus)
    if spec.kind == 'layer':
        yield Tensor(f'{name}_bias', f'{huggingface}.bias', f'{gguf}.bias', (size,))
