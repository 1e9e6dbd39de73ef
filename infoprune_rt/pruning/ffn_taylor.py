"""The paper's training-free FFN compression: linearise around a typical input, truncate the SVD."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from infoprune_rt.plan import FFNPlan
from infoprune_rt.pruning.ffn_forms import FFNFit, FFNWeights, linear_form, round_size, slope
from infoprune_rt.pruning.moments import Twin


def fit(weights: FFNWeights, moments: Twin, plan: FFNPlan) -> FFNFit:
    """W = W2 diag(phi'(W1 x0 + b1)) W1 at the mean input x0, cut to rank k (method.md section 2).

    Without a size, k is the smallest with sum_{i>k} sigma_i^2 / sum sigma_i^2 <= epsilon. ``moments``
    of FFN input -> output: means to fit, second moments on the held-out side only. Bias "taylor"
    makes the truncated map agree with the FFN at x0; "mean" makes it agree on average.
    spectrum: the d singular values of W.
    """
    x0 = moments.fit.mean_a
    jacobian, value = _expand(weights, x0)
    energy, left = torch.linalg.eigh(jacobian @ jacobian.T)
    energy, left = energy.flip(0).clamp_min(0), left.flip(1)
    if plan.size is not None:
        size = plan.size
    else:
        size = round_size(truncation_rank(energy, plan.epsilon or 0.0), weights.width)
    up = left[:, :size]
    down = up.T @ jacobian
    anchor = x0, value if plan.bias == "taylor" else moments.fit.mean_b
    return linear_form(weights, plan, moments, up, down, anchor, energy.sqrt())


def truncation_rank(energy: Tensor, epsilon: float) -> int:
    """The smallest k whose discarded energy sum_{i>k} / sum is at most epsilon; energy descending."""
    discarded = energy.sum() - energy.cumsum(0)
    return int((discarded > epsilon * energy.sum()).sum()) + 1


def _expand(weights: FFNWeights, x0: Tensor) -> tuple[Tensor, Tensor]:
    """The FFN's Jacobian (d x d) and value (d) at x0, float64."""
    first, second = weights.fc1_weight.double(), weights.fc2_weight.double()
    before = F.linear(x0, first, weights.fc1_bias.double())
    jacobian = (second * slope(weights.activation, before)) @ first
    wide = FFNWeights(first, weights.fc1_bias.double(), second, weights.fc2_bias.double(), weights.activation)
    return jacobian, F.linear(wide.hidden(x0), second, wide.fc2_bias)
