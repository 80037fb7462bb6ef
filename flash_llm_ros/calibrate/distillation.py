"""What a ReLU student is trained on: the teacher's next tokens, its FFN outputs, and zeros."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flash_llm_ros.calibrate.torch_model import MATRIX, GatedWeights

_ROWS = 128             # of logits at once: 25 MB in float32 for a vocabulary of 49,152


class SiluBlocks:
    """The teacher's feed-forward blocks; keeps what each of them gave, bfloat16 [B, S, d]."""

    def __init__(self, weights: list[GatedWeights]) -> None:
        self._weights = weights
        self.outputs: list[Tensor] = [torch.empty(0)] * len(weights)

    def __call__(self, layer: int, x: Tensor) -> Tensor:
        w = self._weights[layer]
        h = functional.silu(functional.linear(x, w.gate)) * functional.linear(x, w.up)
        self.outputs[layer] = functional.linear(h, w.down)
        return self.outputs[layer]


class ReluBlocks(nn.Module):
    """The student's feed-forward blocks, float32 parameters that are multiplied as bfloat16.

    Relu is 0 up to `threshold` (FATReLU, arXiv 2402.13516, section 3.3).
    After a run over all layers `error` is the mean over layers of the outputs' squared error
    relative to `targets`, `size` the mean of relu(gate) relative to that of abs(gate), and
    `zeros` the share of relu(gate) that is 0.
    """

    def __init__(self, weights: list[GatedWeights]) -> None:
        super().__init__()
        self.gate, self.up, self.down = (
            nn.ParameterList(getattr(w, part).float() for w in weights)
            for part in ('gate', 'up', 'down'))
        self.threshold = 0.0
        self.begin(None)

    def begin(self, targets: list[Tensor] | None) -> None:
        self._targets, self.error, self.size, self.zeros = targets, 0.0, 0.0, 0.0

    def forward(self, layer: int, x: Tensor) -> Tensor:
        count = len(self.gate)
        gate = functional.linear(x, self.gate[layer].to(MATRIX))
        active = functional.threshold(gate, self.threshold, 0.0)
        h = active * functional.linear(x, self.up[layer].to(MATRIX))
        out = functional.linear(h, self.down[layer].to(MATRIX))
        self.zeros += (1 - float(torch.count_nonzero(active)) / active.numel()) / count
        if self._targets is not None:
            target = self._targets[layer].float()
            wrong = (out.float() - target).square().sum(-1) / target.square().sum(-1)
            self.error = self.error + wrong.mean() / count
            whole = gate.detach().abs().sum(dtype=torch.float32)
            self.size = self.size + active.sum(dtype=torch.float32) / whole / count
        return out

    def canonical(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters by their names in a checkpoint."""
        for part in ('gate', 'up', 'down'):
            for layer, parameter in enumerate(getattr(self, part)):
                yield f'layers.{layer}.{part}', parameter


class Divergence(torch.autograd.Function):
    """Mean KL divergence, nats a token, of the teacher's next tokens from the student's.

    Both come as what enters the head, [tokens, d]; logits exist for some rows at a time only.
    """

    @staticmethod
    def forward(ctx: Any, student: Tensor, teacher: Tensor, head: Tensor) -> Tensor:
        gradient, total = torch.empty_like(student), 0.0
        for start in range(0, len(student), _ROWS):
            rows = slice(start, start + _ROWS)
            ours, theirs = ((hidden[rows] @ head.T).float().log_softmax(1)
                            for hidden in (student, teacher))
            wanted = theirs.exp()
            total += float(torch.dot(wanted.view(-1), theirs.sub_(ours).view(-1)))
            gradient[rows] = ours.exp_().sub_(wanted).to(head.dtype) @ head
        ctx.save_for_backward(gradient.div_(len(student)))
        return torch.tensor(total / len(student))

    @staticmethod
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:
        return ctx.saved_tensors[0] * outer, None, None
