"""Reduced-rank regression: the affine map of rank k that predicts the FFN's output best."""

from __future__ import annotations

import torch

from infoprune_rt.plan import FFNPlan
from infoprune_rt.pruning.ffn_forms import FFNFit, FFNWeights, linear_form, round_size, stay_dense
from infoprune_rt.pruning.least_squares import ridge
from infoprune_rt.pruning.moments import Twin


def fit(weights: FFNWeights, moments: Twin, plan: FFNPlan) -> FFNFit:
    """up = top-k eigenvectors of M C_xy with M = C_yx (C_xx + lambda I)^-1, down = up^T M (method.md section 2).

    ``moments`` of FFN input x -> target y. Without a size, k is the smallest whose relative output
    error on the fitted rows is at most epsilon; if even k = d misses it, the block stays dense.
    spectrum: the share of the output's variance that each further rank explains on the fitted rows.
    """
    data = moments.fit
    full, _ = ridge(moments)
    cross = data.cov_ab
    explained = full @ cross
    _, axes = torch.linalg.eigh((explained + explained.T) / 2)
    axes = axes.flip(1)
    # Orthonormal axes: the errors of truncated maps are sums over axes, ridge included.
    gains = 2 * (axes * (explained @ axes)).sum(0) - (axes * (full @ data.cov_aa @ full.T @ axes)).sum(0)
    spectrum = gains / data.var_b.clamp_min(torch.finfo(torch.float64).tiny)
    size = plan.size
    if size is None:
        errors = 1 - spectrum.cumsum(0)
        met = (errors <= (plan.epsilon or 0.0)).nonzero()
        if len(met) == 0:
            note = f"dense: even full rank leaves {float(errors[-1]):.3g} of the output, above epsilon {plan.epsilon:g}"
            return stay_dense(weights, note, spectrum)
        size = round_size(int(met[0]) + 1, weights.width)
    up = axes[:, :size]
    down = up.T @ full
    return linear_form(weights, plan, moments, up, down, (data.mean_a, data.mean_b), spectrum)
