"""The forms an FFN can take, what each costs, and the rules that every fit obeys."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from infoprune_rt.errors import InfopruneError
from infoprune_rt.ops.plain import ACTIVATIONS, activated
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

    size: rank k or kept neurons m', of a ``hybrid`` form both together, of which linear is the rank; None
    when dense. spectrum: what the size was chosen by, largest
    first, float64; each mode's ``fit`` says what it holds. held_out_error: ||y - yhat||^2 /
    ||y - mean y||^2 on held-out calibration rows; None when dense. activation: where a ``neurons``
    form's is not the tower's own: the one between two factors (``FFNPlan.between``). Such a fit is
    not finished before ``corrected``.
    """

    kind: FFNKind
    tensors: dict[str, Tensor]
    spectrum: Tensor | None = None
    size: int | None = None
    held_out_error: float | None = None
    note: str | None = None
    activation: str | None = None
    linear: int = 0

    def __call__(self, x: Tensor, activation: str) -> Tensor:
        """The fitted FFN on rows x (T x d): the values that the compact block will add."""
        t = self.tensors
        if self.kind == "merged":
            return F.linear(x, t["map"], t["bias"])
        if self.kind == "lowrank":
            return F.linear(F.linear(x, t["down"]), t["up"], t["bias"])
        return F.linear(self.hidden(x, activation), t["fc2_weight"], t["fc2_bias"])

    def hidden(self, x: Tensor, activation: str) -> Tensor:
        """What the second layer of a form that has one is given: T x m or T x m', of a ``hybrid`` one T x size."""
        first = F.linear(x, self.tensors["fc1_weight"], self.tensors["fc1_bias"])
        return activated(first, self.activation or activation, self.linear)


def round_size(size: int, limit: int) -> int:
    """The next multiple of 16, at most ``limit``."""
    return min(-(-max(size, 1) // SIZE_STEP) * SIZE_STEP, limit)


def stay_dense(weights: FFNWeights, note: str | None = None, spectrum: Tensor | None = None) -> FFNFit:
    """The block's FFN unchanged."""
    return FFNFit("dense", weights.tensors(), spectrum, note=note)


def linear_form(
    weights: FFNWeights,
    plan: FFNPlan,
    moments: Twin,
    up: Tensor,
    down: Tensor,
    anchor: tuple[Tensor, Tensor],
    spectrum: Tensor,
) -> FFNFit:
    """An FFN replaced by x -> up down x + c; up d x k, down k x d; c takes the anchor's x to its y.

    Factored it costs 2dk per token, merged d^2: merged where k > d/2 (method.md section 2). With an
    activation between the factors (``plan.between``) it is neither.
    """
    if plan.between is not None:
        return _activated_form(weights, plan, plan.between, up, down, anchor, spectrum)
    size, width = down.shape
    bias = anchor[1] - up @ (down @ anchor[0])
    held_out_error = moments.held.relative_error(up @ down, bias)
    if 2 * size > width:
        fit = FFNFit("merged", {"map": up @ down, "bias": bias}, spectrum, size, held_out_error)
        return _settle(weights, plan, fit, width * width)
    fit = FFNFit("lowrank", {"down": down, "up": up, "bias": bias}, spectrum, size, held_out_error)
    return _settle(weights, plan, fit, 2 * width * size)


def _activated_form(
    weights: FFNWeights,
    plan: FFNPlan,
    between: str,
    up: Tensor,
    down: Tensor,
    anchor: tuple[Tensor, Tensor],
    spectrum: Tensor,
) -> FFNFit:
    """An FFN replaced by x -> up' phi(down' x) + c with up' down' = up down; phi = ``between``.

    Here it matters how the map is divided, and the paper leaves it open. Taken as its kernel is
    written, x U (S V^T), the singular values stay on the output's side: the rows of down' are
    orthonormal. The sign of a pair of singular vectors is free; the anchor's x passes each row with a positive one.
    It costs 2dk per token, and no rank makes it worth merging.
    """
    x, y = anchor
    rotation, stretch, rows = torch.linalg.svd(down, full_matrices=False)
    signs = torch.where(rows @ x < 0, -1.0, 1.0).to(rows)
    rows, up = signs[:, None] * rows, up @ (rotation * stretch * signs)
    parts = {
        "fc1_weight": rows,
        "fc1_bias": rows.new_zeros(len(rows)),
        "fc2_weight": up,
        "fc2_bias": y - up @ activate(between, rows @ x),
    }
    note = f"{between} between the factors"
    fit = FFNFit("neurons", parts, spectrum, len(rows), note=note, activation=between)
    return _settle(weights, plan, fit, 2 * weights.width * len(rows))


def corrected(weights: FFNWeights, plan: FFNPlan, fit: FFNFit, moments: Twin) -> FFNFit:
    """A fit with an activation between its factors, with the constant and the error of what it really does.

    ``moments``: fit.hidden(x) -> target. They need a pass over the data of their own, because the
    mean behind an activation does not follow from the mean before it. The Taylor expansion's own
    constant (bias "taylor") stays.
    """
    up, bias = fit.tensors["fc2_weight"].double(), fit.tensors["fc2_bias"].double()
    if plan.mode != "taylor" or plan.bias == "mean":
        bias = moments.fit.mean_b - up @ moments.fit.mean_a
    tensors = fit.tensors | {"fc2_bias": bias}
    better = replace(fit, tensors=tensors, held_out_error=moments.held.relative_error(up, bias))
    return _settle(weights, plan, better, up.numel() * 2)


def neuron_form(
    weights: FFNWeights,
    plan: FFNPlan,
    moments: Twin,
    kept: Tensor,
    fc2: Tensor,
    bias: Tensor,
    spectrum: Tensor,
    down: Tensor | None = None,
) -> FFNFit:
    """An FFN with the hidden neurons ``kept`` and a new second layer; moments of kept -> y.

    down (r x d): behind the neurons the second layer is given the values down x as they are.
    """
    first, shift = weights.fc1_weight[kept], weights.fc1_bias[kept]
    if down is not None:
        first, shift = torch.cat((first, down.to(first))), torch.cat((shift, shift.new_zeros(len(down))))
    size, error = len(first), moments.held.relative_error(fc2, bias)
    parts = {"fc1_weight": first, "fc1_bias": shift, "fc2_weight": fc2, "fc2_bias": bias}
    fit = (
        FFNFit("neurons", parts, spectrum, size, error)
        if down is None
        else FFNFit("hybrid", parts, spectrum, size, error, linear=len(down))
    )
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
    return replace(fit, tensors=tensors)
