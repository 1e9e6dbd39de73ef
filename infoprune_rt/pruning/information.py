"""Effective rank and KS distance of a block's gated head outputs (method.md section 1).

Everything is computed from the Gram matrix G = Z^T Z of the concatenated head outputs Z (tokens x H * head_dim),
because Z_S = Z D with D = diag(zeta repeated head_dim times) has the Gram matrix D G D: once G is known, no image is
needed to differentiate either loss with respect to zeta. All functions take leading batch dimensions (blocks).

Numerically zero singular values are *exactly* zero here, with zero gradient. That keeps eRank and the spectral KS
distance scale-free to rounding, so that the Euler identity sum_h zeta_h dL/dzeta_h = 0 holds.
"""

from __future__ import annotations

import torch
from torch import Tensor


def singular_values_from_gram(gram: Tensor) -> Tensor:
    """Singular values of Z, falling, from G = Z^T Z.

    gram: [..., n, n], float32 or float64, symmetric positive semi-definite. Returns [..., n].
    The gradient is V diag(g) V^T, without the 1 / (s_i - s_j) of an SVD's vectors, so repeated values are harmless.
    Eigenvalues within rounding of zero (n * eps * the largest) give 0.
    """
    eigenvalues = torch.linalg.eigvalsh(gram).flip(-1)
    n = gram.shape[-1]
    floor = n * torch.finfo(gram.dtype).eps * eigenvalues.detach()[..., :1].clamp(min=0)
    positive = eigenvalues > floor
    # The inner where keeps the infinite slope of sqrt at 0 out of the backward pass.
    return torch.where(positive, torch.where(positive, eigenvalues, 1.0).sqrt(), 0.0)


def gated_gram(gram: Tensor, zeta: Tensor, head_dim: int) -> Tensor:
    """Gram matrix of the gated head outputs, D G D. gram: [..., n, n]; zeta: [..., H] with H * head_dim = n."""
    scale = zeta.to(gram).repeat_interleave(head_dim, dim=-1)
    return scale.unsqueeze(-1) * gram * scale.unsqueeze(-2)


def erank(singular_values: Tensor) -> Tensor:
    """Effective rank exp(-sum p ln p), p = s / sum(s) (Roy & Vetterli 2007). [..., n] -> [...].

    1 <= eRank <= number of positive values; 0 where all values are zero.
    """
    total = singular_values.sum(-1)
    alive = total > 0
    positive = singular_values > 0
    s_ln_s = singular_values * torch.where(positive, singular_values, 1.0).log()
    safe_total = torch.where(alive, total, 1.0)
    entropy = safe_total.log() - s_ln_s.sum(-1) / safe_total
    return torch.where(alive, entropy.exp(), 0.0)


def erank_change(dense: Tensor, gated: Tensor) -> Tensor:
    """(eRank(Z_S) - eRank(Z)) / eRank(Z) from singular values, Z detached. [..., n], [..., n] -> [...].

    A block that is all zero (eRank 0) has no information to lose: 0.
    """
    reference = erank(dense).detach()
    return (erank(gated) - reference) / reference.clamp(min=1)


def ks_spectral(dense: Tensor, gated: Tensor) -> Tensor:
    """KS distance max_k |sum_{i<=k} (p_i - p_i^S)| of two normalised spectra, dense detached; in [0, 1].

    dense, gated: [..., n] singular values, falling. Returns [...]. Gaps within rounding of zero count as zero: at
    equal spectra the distance has a kink, and its gradient must not be the sign of rounding noise.
    """
    gap = (_shares(dense).detach() - _shares(gated)).cumsum(-1).abs()
    noise = dense.shape[-1] * torch.finfo(dense.dtype).eps
    return torch.where(gap > noise, gap, 0.0).amax(-1)


def ks_empirical(dense: Tensor, gated: Tensor, tau: float) -> Tensor:
    """KS distance between the two empirical distributions of singular values, dense detached; in [0, 1].

    The step of each CDF is smoothed by a sigmoid of width ``tau``, in units of the dense mean singular value. Both
    CDFs are compared at every value of either spectrum. dense, gated: [..., n]. Returns [...].
    """
    dense = dense.detach()
    unit = tau * dense.mean(-1, keepdim=True)
    unit = torch.where(unit > 0, unit, 1.0)
    points = torch.cat([dense, gated.detach()], dim=-1)
    gap = (_smooth_cdf(dense, points, unit) - _smooth_cdf(gated, points, unit)).abs()
    return gap.amax(-1)


def _shares(singular_values: Tensor) -> Tensor:
    total = singular_values.sum(-1, keepdim=True)
    return singular_values / torch.where(total > 0, total, 1.0)


def _smooth_cdf(values: Tensor, points: Tensor, unit: Tensor) -> Tensor:
    """[..., n] values, [..., m] points -> [..., m]."""
    return torch.sigmoid((points.unsqueeze(-1) - values.unsqueeze(-2)) / unit.unsqueeze(-1)).mean(-1)
