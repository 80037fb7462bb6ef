"""The olmoe family (arXiv 2409.02060).

It is llama with norms of queries and keys over their whole width, and experts.
"""

from collections.abc import Iterator

from flash_llm_ros.checkpoint.families.experts import ExpertNames, expert_block, expert_tensors
from flash_llm_ros.checkpoint.families.family import Config, Tensor
from flash_llm_ros.checkpoint.families.llama import Llama
from flash_llm_ros.model_spec import AttentionSpec, FeedForwardSpec, ModelSpec


class Olmoe(Llama):

    gguf_interleaves = False
    qk_norm = 'width'

    def attention(self, config: Config) -> AttentionSpec:
        if (clipped := config.get('clip_qkv')) is not None:
            raise ValueError(f'clip_qkv is {clipped}; it must be null')
        return super().attention(config)

    def feed_forward(self, config: Config) -> FeedForwardSpec:
        return expert_block(config, config['intermediate_size'],
                            config.get('norm_topk_prob', False))

    def block_tensors(self, spec: ModelSpec, layer: int) -> Iterator[Tensor]:
        return expert_tensors(spec, layer, ExpertNames())
