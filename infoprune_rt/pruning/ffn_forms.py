"""The forms an FFN can take, what each costs, and the rules that every fit obeys."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from infoprune_rt.errors import InfopruneError
from infoprune_rt.ops.plain import ACTIVATIONS
from infoprune_rt.plan import FFNKind, FFNPlan
from infoprune_rt.pruning.moments import Twin
from infoprune_rt.towers.base import SourceBlock

SIZE_STEP = 16  # ranks and widths that the hardware likes are multiples of this


def activate(name: str, x: Tensor) -> Tensor:
    """phi(x), by the name that transformers' configs use."""
    if name not in ACTIVATIONS:
        raise InfopruneError(f"the FFN activation {name!r} is not supported; known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name](x)


def slope(name: str, x: Tensor) -> Tensor:
    """phi'(x), elementwise."""
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(activate(name, at).sum(), at)
    return gradient


@dataclass(frozen=True)
class FFNWeights:
    """A dense FFN: fc2 phi(fc1 x + b1) + b2; fc1_weight m x d, fc2_weight d x m."""

    fc1_weight: Tensor
    fc1_bias: Tensor
    fc2_weight: Tensor
    fc2_bias: Tensor
    activation: str

    @classmethod
    def of(cls, block: SourceBlock, activation: str) -> FFNWeights:
        """The live weights of a block, detached."""
        fc1, fc2 = block.fc1, block.fc2
        return cls(fc1.weight.detach(), fc1.bias.detach(), fc2.weight.detach(), fc2.bias.detach(), activation)

    @property
    def width(self) -> int:
        return self.fc1_weight.shape[1]

    @property
    def hidden_width(self) -> int:
        return self.fc1_weight.shape[0]

    def hidden(self, x: Tensor) -> Tensor:
        """phi(fc1 x + b1): ... x m."""
        return activate(self.activation, F.linear(x, self.fc1_weight, self.fc1_bias))

    def tensors(self) -> dict[str, Tensor]:
        """Under the compact block's names, without their ``ffn.`` prefix."""
        return {
            "fc1_weight": self.fc1_weight,
            "fc1_bias": self.fc1_bias,
            "fc2_weight": self.fc2_weight,
            "fc2_bias": self.fc2_bias,
        }


@dataclass(frozen=True)
class FFNFit:
    """What a fit gave. ``tensors`` have the dense weights' dtype and the compact block's names.

    size: rank k or kept neurons m'; None when dense. spectrum: what the size was chosen by, largest
    first, float64; each mode's ``fit`` says what it holds. held_out_error: ||y - yhat||^2 /
    ||y - mean y||^2 on held-out calibration rows; None when dense.
    """

    kind: FFNKind
    tensors: dict[str, Tensor]
    spectrum: Tensor | None = None
    size: int | None = None
    held_out_error: float | None = None
    note: str | None = None

    def __call__(self, x: Tensor, activation: str) -> Tensor:
        """The fitted FFN on rows x (T x d): the values that the compact block will add."""
        t = self.tensors
        if self.kind == "merged":
            return F.linear(x, t["map"], t["bias"])
        if self.kind == "lowrank":
            return F.linear(F.linear(x, t["down"]), t["up"], t["bias"])
        hidden = activate(activation, F.linear(x, t["fc1_weight"], t["fc1_bias"]))
        return F.linear(hidden, t["fc2_weight"], t["fc2_bias"])


def round_size(size: int, limit: int) -> int:
    """The next multiple of 16, at most ``limit``."""
    return min(-(-max(size, 1) // SIZE_STEP) * SIZE_STEP, limit)


def stay_dense(weights: FFNWeights, note: str | None = None, spectrum: Tensor | None = None) -> FFNFit:
    """The block's FFN unchanged."""
    return FFNFit("dense", weights.tensors(), spectrum, note=note)


def linear_form(
    weights: FFNWeights, plan: FFNPlan, moments: Twin, up: Tensor, down: Tensor, bias: Tensor, spectrum: Tensor
) -> FFNFit:
    """An FFN replaced by x -> up down x + bias; up d x k, down k x d.

    Factored it costs 2dk per token, merged d^2: merged where k > d/2 (method.md section 2).
    """
    size, width = down.shape
    held_out_error = moments.held.relative_error(up @ down, bias)
    if 2 * size > width:
        fit = FFNFit("merged", {"map": up @ down, "bias": bias}, spectrum, size, held_out_error)
        return _settle(weights, plan, fit, width * width)
    fit = FFNFit("lowrank", {"down": down, "up": up, "bias": bias}, spectrum, size, held_out_error)
    return _settle(weights, plan, fit, 2 * width * size)


def neuron_form(
    weights: FFNWeights, plan: FFNPlan, moments: Twin, kept: Tensor, fc2: Tensor, bias: Tensor, spectrum: Tensor
) -> FFNFit:
    """An FFN with the hidden neurons ``kept`` and a new second layer; moments of kept -> y."""
    size = len(kept)
    parts = {
        "fc1_weight": weights.fc1_weight[kept],
        "fc1_bias": weights.fc1_bias[kept],
        "fc2_weight": fc2,
        "fc2_bias": bias,
    }
    fit = FFNFit("neurons", parts, spectrum, size, moments.held.relative_error(fc2, bias))
    return _settle(weights, plan, fit, 2 * weights.width * size)


def _settle(weights: FFNWeights, plan: FFNPlan, fit: FFNFit, cost: int) -> FFNFit:
    """Refuse a form that gains nothing or errs too much; cast the rest to the tower's dtype."""
    dense_cost = 2 * weights.width * weights.hidden_width
    if cost >= dense_cost:
        note = f"dense: the {fit.kind} form of size {fit.size} would cost {cost} products per token, dense {dense_cost}"
        return stay_dense(weights, note, fit.spectrum)
    error = fit.held_out_error
    if plan.max_error is not None and error is not None and not error <= plan.max_error:
        note = f"dense: held-out error {error:.3g} of size {fit.size} exceeds max_error {plan.max_error:g}"
        return stay_dense(weights, note, fit.spectrum)
    dtype = weights.fc1_weight.dtype
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in fit.tensors.items()}
    return FFNFit(fit.kind, tensors, fit.spectrum, fit.size, error)
