"""After heads are removed: the attention output projection, solved again on the survivors."""

from __future__ import annotations

from torch import Tensor

from infoprune_rt.pruning.least_squares import ridge
from infoprune_rt.pruning.moments import Twin


def refit_output(moments: Twin, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weight (d x p) and bias (d), in the given weight's dtype, from moments of kept Z -> target.

    ``weight``: the sliced projection of the kept heads (d x p, p = kept heads x head_dim); the
    solution stays there in directions of Z that the calibration never shows. With no head kept
    (p = 0) only the bias is left: the target's mean.
    """
    solved, bias = ridge(moments, weight)
    return solved.to(weight.dtype).contiguous(), bias.to(weight.dtype)
