"""Low-rank predictors trained on what was active; needs torch (the extra `calibrate`)."""

from typing import TYPE_CHECKING

from flash_llm_ros.convert.ffn_weights import Array
from flash_llm_ros.model_spec import ModelSpec

if TYPE_CHECKING:
    import torch

_EPOCHS = 6
_BATCH = 128
_RATE = 5e-3
_SHARPNESS = 2.0                # of the logistic curve over the logarithm of a score
_SEED = 0


class TorchMissingError(ValueError):
    """A trained predictor was asked for where torch is not installed."""

    def __init__(self) -> None:
        super().__init__('trained predictors need torch, which is not installed: '
                         'pip install "flash_llm_ros[calibrate]", or leave them out')


def torch_is_installed() -> bool:
    try:
        import torch  # noqa: F401
    except ImportError:
        return False
    return True


def train(inner: Array, outer: Array, x: Array, sizes: Array, limit: float, layout: str,
          spec: ModelSpec, bias: Array | None) -> tuple[Array, Array]:
    """Better factors of the same rank, from training-free ones: (outer, inner).

    Classifies neurons into active (abs(activation) above `limit`) and not, with a loss in which
    both weigh as much together however few are active (the paper's balanced loss), and active
    ones by their size. `x` is [tokens, d], `sizes`, of the activations, [tokens, ffn]; `bias`
    [ffn] is added to the scores of the bundled layout.
    TorchMissingError.
    """
    try:
        import torch
    except ImportError:
        raise TorchMissingError from None
    generator = torch.Generator().manual_seed(_SEED)
    factors = [torch.from_numpy(factor.copy()).requires_grad_() for factor in (inner, outer)]
    steps = _EPOCHS * -(-len(x) // _BATCH)
    optimiser = torch.optim.Adam(_at_their_scale(factors))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    shift = torch.zeros(1) if bias is None else torch.from_numpy(bias)
    inputs, wanted = torch.from_numpy(x), torch.from_numpy(sizes)
    for _ in range(_EPOCHS):
        for index in torch.randperm(len(x), generator=generator).split(_BATCH):
            scores = _scores(inputs[index] @ factors[0].T @ factors[1].T, layout, spec, shift)
            loss = _balanced_loss(scores, wanted[index], limit, layout)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    trained_inner, trained_outer = (factor.detach().numpy() for factor in factors)
    return trained_outer, trained_inner


def _at_their_scale(factors: 'list[torch.Tensor]') -> list[dict]:
    """A step is the same share of either factor, whose sizes differ by orders of magnitude."""
    return [{'params': [factor], 'lr': _RATE * float(factor.detach().square().mean().sqrt())}
            for factor in factors]


def _scores(z: 'torch.Tensor', layout: str, spec: ModelSpec,
            shift: 'torch.Tensor') -> 'torch.Tensor':
    import torch
    if layout == 'bundled':
        return z + shift - spec.feed_forward.relu_threshold
    gate, up = z.chunk(2, dim=1)
    return (torch.nn.functional.silu(gate) * up).abs()


def _balanced_loss(scores: 'torch.Tensor', wanted: 'torch.Tensor', limit: float,
                   layout: str) -> 'torch.Tensor':
    import torch
    active = wanted > limit
    logits = (scores if layout == 'bundled' else
              _SHARPNESS * (scores.clamp_min(1e-3 * limit) / limit).log())
    loss = torch.nn.functional.binary_cross_entropy_with_logits(
        logits, active.float(), reduction='none')
    weight = torch.where(active, wanted, torch.zeros_like(wanted))
    return ((loss * weight).sum() / weight.sum().clamp_min(1e-12)
            + (loss * ~active).sum() / (~active).sum().clamp_min(1))
