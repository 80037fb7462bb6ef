"""The llama family: RMS norms, rotary grouped-query attention, gated feed-forward block.

Most families are llama but for some settings; theirs are in subclasses, their tensors here.
"""

from collections.abc import Iterator
from typing import ClassVar

from flash_llm_ros.checkpoint.families.family import Config, Family, Tensor, matrix, norm
from flash_llm_ros.checkpoint.families.rope_scaling import rope_settings, rotary_positions
from flash_llm_ros.model_spec import (
    AttentionSpec,
    FeedForwardSpec,
    ModelSpec,
    NormSpec,
    PositionSpec,
)

_SLIDING, _FULL = 'sliding_attention', 'full_attention'     # of layer_types
_ACTIVATIONS = {'swish': 'silu', 'gelu_pytorch_tanh': 'gelu_tanh', 'gelu_new': 'gelu_tanh'}


class Llama(Family):

    defaults: ClassVar[Config] = {'hidden_act': 'silu'}
    activation_key = 'hidden_act'
    default_theta = 10000.0             # of config.json
    in_part = False                     # whether partial_rotary_factor is read
    layers_differ = False               # whether layer_types is read
    gguf_interleaves = True             # the rows of q and k
    huggingface_interleaves = False
    gated = True
    qk_norm = 'none'
    norm_plus = 0.0                     # what Hugging Face's weights of norms lack
    before_ffn = 'post_attention_layernorm'     # Hugging Face's name of the norm there
    gguf_before_ffn = 'ffn_norm'

    def attention(self, config: Config) -> AttentionSpec:
        heads, biased = config['num_attention_heads'], bool(config.get('attention_bias'))
        return AttentionSpec(heads, config.get('num_key_value_heads') or heads, head_dim(config),
                             bias=biased, output_bias=biased, qk_norm=self.qk_norm,
                             soft_cap=self.cap(config, 'attn_logit_softcapping'),
                             windows=self.windows(config))

    def windows(self, config: Config) -> tuple[int, ...]:
        """How far each layer looks back; empty where all layers see everything."""
        window = self.window(config)
        kinds = [_SLIDING if window and self.slides(config, layer) else _FULL
                 for layer in range(config['num_hidden_layers'])]
        if named := config.get('layer_types'):
            if unknown := set(named) - {_SLIDING, _FULL}:
                raise ValueError(f'layer_types has {min(unknown)}; only {_SLIDING} and {_FULL} '
                                 'are supported')
            if named != kinds and not self.layers_differ:
                raise ValueError(f'layer_types has {", ".join(sorted(set(named)))}; transformers '
                                 f'has {kinds[0]} in all layers of models of type '
                                 f'{config["model_type"]}, and passes over it: it must go')
            kinds = named
        if _SLIDING not in kinds:
            return ()
        if not window:
            raise ValueError(f'layer_types has {_SLIDING}, but no sliding_window is set')
        return tuple(window if kind == _SLIDING else 0 for kind in kinds)

    def window(self, config: Config) -> int | None:
        return config.get('sliding_window')

    def slides(self, config: Config, layer: int) -> bool:
        """Whether `window` is this layer's, where no `layer_types` say so."""
        return False

    def feed_forward(self, config: Config) -> FeedForwardSpec:
        if experts := config.get('num_experts') or config.get('num_local_experts'):
            raise ValueError(f'num_experts is {experts}; mixtures of experts are not supported')
        size, bias = config['intermediate_size'], bool(config.get('mlp_bias'))
        if bias and self.gated:
            raise ValueError('mlp_bias is true; a block with a gate has no biases here')
        activation = config[self.activation_key]
        if activation != 'fatrelu':     # ProSparse's and MiniCPM-S's relu with a threshold
            return FeedForwardSpec(size, _ACTIVATIONS.get(activation, activation), self.gated,
                                   bias)
        if (threshold := config.get('hidden_act_param')) is None:
            raise ValueError('hidden_act is fatrelu, but hidden_act_param, its threshold, is '
                             'missing')
        return FeedForwardSpec(size, 'relu', self.gated, bias, float(threshold))

    def norm(self, config: Config) -> NormSpec:
        return NormSpec('rms', float(config['rms_norm_eps']))

    def positions(self, config: Config) -> PositionSpec:
        return rotary_positions(config, head_dim(config), rope_settings(config),
                                self.default_theta, self.in_part)

    def model_tensors(self, spec: ModelSpec) -> Iterator[Tensor]:
        vocabulary = spec.embedding.vocab_size, spec.hidden_size
        yield from matrix('embedding', 'model.embed_tokens', 'token_embd', vocabulary)
        yield from self._norm('final_norm', 'model.norm', 'output_norm', spec.hidden_size, spec)
        if not spec.embedding.tied:
            yield from matrix('head', 'lm_head', 'output', vocabulary)

    def layer_tensors(self, spec: ModelSpec, layer: int) -> Iterator[Tensor]:
        d, attention, order = spec.hidden_size, spec.attention, spec.norm
        if order.first:
            yield from self._norm('attention_norm', 'input_layernorm', 'attn_norm', d, spec)
        yield from self.qkv(spec)
        if attention.qk_norm != 'none':
            one = attention.qk_norm == 'head'
            for part, width in (('q', attention.query_width), ('k', attention.kv_width)):
                yield from self._norm(f'{part}_norm', f'self_attn.{part}_norm',
                                      f'attn_{part}_norm', attention.head_dim if one else width,
                                      spec)
        yield from matrix('o', 'self_attn.o_proj', 'attn_output', (d, attention.query_width),
                          attention.output_bias)
        if order.output:
            yield from self._norm('attention_output_norm', 'post_attention_layernorm',
                                  'post_attention_norm', d, spec)
        if order.first and not order.parallel:
            yield from self._norm('ffn_norm', self.before_ffn, self.gguf_before_ffn, d, spec)
        yield from self.block_tensors(spec, layer)
        if order.output:
            yield from self._norm('ffn_output_norm', 'post_feedforward_layernorm',
                                  'post_ffw_norm', d, spec)

    def qkv(self, spec: ModelSpec) -> Iterator[Tensor]:
        d, attention = spec.hidden_size, spec.attention
        q, kv, bias = attention.query_width, attention.kv_width, attention.bias
        heads, kv_heads = ((attention.heads, attention.kv_heads) if self.gguf_interleaves
                           else (0, 0))
        yield from matrix('q', 'self_attn.q_proj', 'attn_q', (q, d), bias, heads,
                          self.huggingface_interleaves)
        yield from matrix('k', 'self_attn.k_proj', 'attn_k', (kv, d), bias, kv_heads,
                          self.huggingface_interleaves)
        yield from matrix('v', 'self_attn.v_proj', 'attn_v', (kv, d), bias)

    def block_tensors(self, spec: ModelSpec, layer: int) -> Iterator[Tensor]:
        """Those of a layer's feed-forward block."""
        yield from self.gate_up(spec)
        yield from matrix('down', 'mlp.down_proj', 'ffn_down',
                          (spec.hidden_size, spec.feed_forward.size), spec.feed_forward.bias)

    def gate_up(self, spec: ModelSpec) -> Iterator[Tensor]:
        shape, block = (spec.feed_forward.size, spec.hidden_size), spec.feed_forward
        if block.gated:
            yield from matrix('gate', 'mlp.gate_proj', 'ffn_gate', shape)
        yield from matrix('up', 'mlp.up_proj', 'ffn_up', shape, block.bias)

    def _norm(self, name: str, huggingface: str, gguf: str, size: int,
              spec: ModelSpec) -> Iterator[Tensor]:
        return norm(name, huggingface, gguf, size, spec.norm, self.norm_plus)


def head_dim(config: Config) -> int:
    return config.get('head_dim') or config['hidden_size'] // config['num_attention_heads']
