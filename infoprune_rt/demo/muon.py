"""Muon (Jordan et al. 2024) in float32: momentum whose matrix is brought near an orthogonal one.

torch.optim.Muon works in bfloat16, which a CPU without bfloat16 arithmetic only emulates: there one step
of it took longer than the forward and backward pass that it belongs to.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
# Quintic Newton-Schulz coefficients of the published method: steep at zero, so that five rounds do.
A, B, C = 3.4445, -4.775, 2.0315
ROUNDS = 5


def orthogonalised(matrix: Tensor) -> Tensor:
    """The nearest semi-orthogonal matrix, roughly: singular values end in about 0.7..1.2. [m, n] -> [m, n]."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.mT.contiguous() if tall else matrix
    x = x / x.norm().clamp_min(1e-7)
    for _ in range(ROUNDS):
        gram = x @ x.mT
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=B, alpha=C), x, beta=A)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """For matrices only. Updates are scaled to the root mean square of AdamW's, so that they share a rate."""

    def __init__(self, params: Iterable[nn.Parameter], lr: float = 1e-3, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # no closure is ever evaluated again
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
                update = orthogonalised(parameter.grad.lerp(momentum, MOMENTUM))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.add_(update, alpha=-group["lr"] * 0.2 * max(parameter.shape) ** 0.5)
