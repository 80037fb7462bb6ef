"""Which attention a store has: the core's, or that of its graphs."""

from flash_llm_ros.engine.config import EngineConfig
from flash_llm_ros.engine.model.attention_part import AttentionPart
from flash_llm_ros.engine.model.core_attention import CoreAttention
from flash_llm_ros.engine.model.graph_attention import GraphAttention
from flash_llm_ros.store.flash_store import FlashStore


def attention_of(store: FlashStore, config: EngineConfig, context: int) -> AttentionPart:
    """For a KV cache of `context` tokens."""
    if store.manifest.model.core_attention:
        return CoreAttention(store, config.kv_cache, context, config.prefill_chunk,
                             config.lookup_tokens)
    return GraphAttention(store, config.threads, context, config.prefill_chunk)
