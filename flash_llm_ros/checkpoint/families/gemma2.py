"""The gemma2 family (arXiv 2408.00118).

It has norms on both sides of attention and block, caps of scores and logits, and every other layer
has a window.
"""

from typing import Any, ClassVar

from flash_llm_ros.checkpoint.families.family import Config
from flash_llm_ros.checkpoint.families.llama import Llama
from flash_llm_ros.checkpoint.weight_scales import WeightScales, positive
from flash_llm_ros.model_spec import NormSpec


class Gemma2(Llama):

    defaults: ClassVar[Config] = {
        'hidden_activation': 'gelu_pytorch_tanh', 'num_attention_heads': 8,
        'num_key_value_heads': 4, 'head_dim': 256, 'rms_norm_eps': 1e-6,
        'query_pre_attn_scalar': 256, 'max_position_embeddings': 8192, 'vocab_size': 256_000,
        'sliding_window': 4096, 'attn_logit_softcapping': 50.0, 'final_logit_softcapping': 30.0}
    tied_by_default = True
    caps = ('attn_logit_softcapping', 'final_logit_softcapping')
    layers_differ = True
    activation_key = 'hidden_activation'
    gguf_interleaves = False
    norm_plus = 1.0
    before_ffn = 'pre_feedforward_layernorm'
    gguf_largest = 46                   # layers of the 27B, whose queries are scaled otherwise

    def norm(self, config: Config) -> NormSpec:
        return NormSpec('rms', float(config['rms_norm_eps']), output=True)

    def slides(self, config: Config, layer: int) -> bool:
        return layer % 2 == 0

    def scales(self, config: Config) -> WeightScales:
        if config.get('use_bidirectional_attention'):
            raise ValueError('use_bidirectional_attention is true; only text that is read from '
                             'left to right is supported')
        size = positive(config, 'query_pre_attn_scalar')
        return WeightScales(embedding=config['hidden_size'] ** 0.5,
                            query=(self.attention(config).head_dim / size) ** 0.5)

    def config_of_gguf(self, fields: dict[str, Any]) -> Config:
        config = super().config_of_gguf(fields)
        hidden, heads = config['hidden_size'], config['num_attention_heads']
        largest = config['num_hidden_layers'] == self.gguf_largest
        config['query_pre_attn_scalar'] = hidden / heads if largest else config['head_dim']
        return config
