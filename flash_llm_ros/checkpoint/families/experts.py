"""What families with experts share: their settings, and the names of their tensors."""

from collections.abc import Iterator
from dataclasses import dataclass

from flash_llm_ros.checkpoint.families.family import Config, Tensor, matrix, parts
from flash_llm_ros.checkpoint.weight_scales import positive
from flash_llm_ros.model_spec import ExpertsSpec, FeedForwardSpec, ModelSpec

_COUNTS = ('num_local_experts', 'num_experts', 'n_routed_experts', 'moe_num_experts')
_SIGMOID = 2            # of GGUF's kinds of shares


@dataclass(frozen=True)
class ExpertNames:
    """What a Hugging Face folder calls a layer's tensors; most families have these names."""

    router: str = 'mlp.gate'
    router_now: str = ''                # of newer files
    experts: str = 'mlp.experts'        # behind it the number of one
    gate: str = 'gate_proj'
    up: str = 'up_proj'
    down: str = 'down_proj'
    all_gate_up: str = 'mlp.experts.gate_up_proj'   # may hold all experts', in their place
    all_down: str = 'mlp.experts.down_proj'
    correction: str = 'mlp.gate.e_score_correction_bias'
    correction_now: str = ''
    shared: str = 'mlp.shared_experts'
    shared_gate_up: str = ''            # both in one matrix
    shared_router: str = 'mlp.shared_expert_gate.weight'
    dense: str = 'mlp'


def expert_block(config: Config, size: int, normalised: bool, **others: object) -> FeedForwardSpec:
    """A block of experts of `size` neurons each; `others`: fields of ExpertsSpec.

    KeyError names a missing setting.
    """
    count = next((config[name] for name in _COUNTS if config.get(name)), None)
    return FeedForwardSpec(size, config.get('hidden_act', 'silu'), experts=ExpertsSpec(
        config['num_experts'] if count is None else count, config['num_experts_per_tok'],
        normalised, **others))


def deepseek_block(config: Config) -> FeedForwardSpec:
    """Of DeepSeek-V3 (arXiv 2412.19437) and those after it: sigmoids, groups, shared experts."""
    dense = config.get('first_k_dense_replace') or 0
    return expert_block(
        config, config['moe_intermediate_size'], bool(config.get('norm_topk_prob')),
        shares='sigmoid', corrected=True, groups=config.get('n_group') or 1,
        active_groups=config.get('topk_group') or 1,
        scale=positive(config, 'routed_scaling_factor', 1.0),
        shared=(config.get('n_shared_experts') or 0) * config['moe_intermediate_size'],
        dense_layers=dense, dense_size=config['intermediate_size'] if dense else 0)


def check_sigmoid(config: Config) -> None:
    """Raise ValueError where a GGUF file says that shares are no sigmoids."""
    if (kind := config.get('scoring_func', _SIGMOID)) != _SIGMOID:
        raise ValueError(f'expert_gating_func is {kind}; it must be {_SIGMOID}, of sigmoids')


def dense_layers(config: Config) -> int:
    """How many layers of Qwen's models have no experts; ValueError unless they are the first."""
    if (step := config.get('decoder_sparse_step') or 1) != 1:
        raise ValueError(f'decoder_sparse_step is {step}; it must be 1: only the first layers may '
                         'be without experts')
    dense = config.get('mlp_only_layers') or []
    if sorted(dense) != list(range(len(dense))):
        raise ValueError(f'mlp_only_layers is {dense}; only the first layers may be without '
                         'experts')
    return len(dense)


def expert_tensors(spec: ModelSpec, layer: int, names: ExpertNames) -> Iterator[Tensor]:
    """Those of a layer's block, whether it has experts or not."""
    block = spec.feed_forward
    if not block.routed(layer):
        yield from _dense(spec, layer, names, names.dense, '')
        return
    d, neurons, experts = spec.hidden_size, block.size, block.experts
    count, now = experts.count, names.router_now
    yield Tensor('router', f'{names.router}.weight', 'ffn_gate_inp.weight', (count, d),
                 huggingface_now=f'{now}.weight' if now else '')
    if experts.corrected:
        yield Tensor('router_correction', names.correction, 'exp_probs_b.bias', (count,),
                     huggingface_now=names.correction_now)
    for part, name, shape, where in (
            ('gate', names.gate, (neurons, d), (names.all_gate_up, 0, 2 * neurons)),
            ('up', names.up, (neurons, d), (names.all_gate_up, neurons, 2 * neurons)),
            ('down', names.down, (d, neurons), (names.all_down, 0, d))):
        yield Tensor(f'expert_{part}', f'{names.experts}.{{}}.{name}.weight',
                     f'ffn_{part}_exps.weight', (count, *shape), 0, *where)
    if experts.shared:
        yield from _dense(spec, layer, names, names.shared, '_shexp')
    if experts.shared_weighed:
        yield Tensor('shared_router', names.shared_router, 'ffn_gate_inp_shexp.weight', (d,))


def _dense(spec: ModelSpec, layer: int, names: ExpertNames, huggingface: str, gguf: str
           ) -> Iterator[Tensor]:
    """Of the block that every token uses."""
    d, neurons = spec.hidden_size, spec.feed_forward.always(layer)
    if names.shared_gate_up:
        yield from parts({'gate': neurons, 'up': neurons}, f'{huggingface}.{names.shared_gate_up}',
                         f'ffn_{{}}{gguf}', d)
    else:
        for part, name in (('gate', names.gate), ('up', names.up)):
            yield from matrix(part, f'{huggingface}.{name}', f'ffn_{part}{gguf}', (neurons, d))
    yield from matrix('down', f'{huggingface}.{names.down}', f'ffn_down{gguf}', (d, neurons))
