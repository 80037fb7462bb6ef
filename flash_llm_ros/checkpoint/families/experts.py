"""What families with experts share: their settings, and the names of their tensors."""

from collections.abc import Iterator

from flash_llm_ros.checkpoint.families.family import Config, Tensor, matrix
from flash_llm_ros.model_spec import ExpertsSpec, FeedForwardSpec, ModelSpec


def expert_block(config: Config, size: int, normalised: bool) -> FeedForwardSpec:
    """A block of experts of `size` neurons each. KeyError names a missing setting."""
    count = config.get('num_local_experts') or config['num_experts']
    return FeedForwardSpec(size, config.get('hidden_act', 'silu'), experts=ExpertsSpec(
        count, config['num_experts_per_tok'], normalised))


def expert_tensors(spec: ModelSpec, router: str, experts: str, parts: tuple[str, str, str],
                   fused: tuple[str, str]) -> Iterator[Tensor]:
    """Of a layer. `router`, `experts`: as a Hugging Face folder calls them.

    `parts`: what gate, up and down of one expert are called there, behind its number; `fused`: the
    tensors that may have gate and up, and down, of all experts instead.
    """
    d, neurons, count = spec.hidden_size, spec.feed_forward.size, spec.feed_forward.experts.count
    yield from matrix('router', router, 'ffn_gate_inp', (count, d))
    together, down = fused
    for name, part, shape, where in (
            ('gate', parts[0], (neurons, d), (together, 0, 2 * neurons)),
            ('up', parts[1], (neurons, d), (together, neurons, 2 * neurons)),
            ('down', parts[2], (d, neurons), (down, 0, d))):
        yield Tensor(f'expert_{name}', f'{experts}.{{}}.{part}.weight', f'ffn_{name}_exps.weight',
                     (count, *shape), 0, *where)
