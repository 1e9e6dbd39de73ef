"""Ridge regression from moments, pulled towards a prior map, with a penalty free of units."""

from __future__ import annotations

import torch
from torch import Tensor

from infoprune_rt.pruning.moments import Moments, Twin

# Penalties as fractions of trace(C)/p, the mean eigenvalue of the regressors' covariance: the
# choice does not change when activations are rescaled. Finer where few tokens make it matter;
# much smaller ones would amplify float64's rounding when the covariance is singular.
_PENALTIES = (1e-6, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


def penalised(covariance: Tensor, fraction: float) -> tuple[Tensor, float]:
    """C + lambda I with lambda = fraction * trace(C) / p, and lambda."""
    penalty = fraction * float(covariance.diagonal().mean()) + torch.finfo(torch.float64).tiny
    lifted = covariance.clone()
    lifted.diagonal().add_(penalty)
    return lifted, penalty


def ridge(moments: Twin, prior: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Weight (q x p) and bias (q), float64, of the affine map a -> b.

    Minimises E||b - W a - c||^2 + lambda ||W - prior||^2 (prior None: zero), c unpenalised. The
    penalty is the one of a fixed grid that errs least on the held-out rows. Directions of a that
    the calibration never shows keep the prior's action, so fewer tokens than columns are fine.
    """
    fit = moments.fit
    covariance, cross = fit.cov_aa, fit.cov_ab
    start = torch.zeros_like(cross.T) if prior is None else prior.double()
    missing = cross - covariance @ start.T
    best = start, _bias(fit, start)
    if not bool(covariance.diagonal().sum() > 0):
        return best
    least = moments.held.residual(*best)
    for fraction in _PENALTIES:
        lifted, _ = penalised(covariance, fraction)
        factor, failed = torch.linalg.cholesky_ex(lifted)
        if failed:  # too small a penalty for a singular covariance; the next one is larger
            continue
        weight = start + torch.cholesky_solve(missing, factor).T
        tried = weight, _bias(fit, weight)
        error = moments.held.residual(*tried)
        if error < least:
            best, least = tried, error
    return best


def _bias(fit: Moments, weight: Tensor) -> Tensor:
    return fit.mean_b - weight @ fit.mean_a
