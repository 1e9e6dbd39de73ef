"""Whether a row gives the right answer: as near to the exact one as PyTorch's own execution of the same function."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Check:
    """A row's first logits. error: how far they are from the exact ones, relative; None: no answer. allowed: may be."""

    error: float | None
    allowed: float

    @property
    def right(self) -> bool:
        """NaN never is."""
        return self.error is not None and self.error <= self.allowed


def check(mine: Tensor, theirs: Tensor, exact: Tensor, dtype: torch.dtype) -> Check:
    """Logits of a row against those of PyTorch's execution in the same dtype and those in a wider one.

    A row may err twice as much as PyTorch does, and one rounding more.
    """
    allowed = relative_distance(theirs, exact)
    return Check(
        relative_distance(mine, exact), float("nan") if allowed is None else 2 * allowed + torch.finfo(dtype).eps
    )


def relative_distance(found: Tensor, exact: Tensor) -> float | None:
    """||found - exact|| / ||exact||; None where shapes differ or something is not finite."""
    if found.shape != exact.shape or not found.isfinite().all():
        return None
    return float((found - exact).norm() / exact.norm())
