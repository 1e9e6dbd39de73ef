"""Streaming moments of row pairs (a, b): all that the closed-form fits need to know of the data.

Sums are kept in float64, so that centring them later loses nothing that matters, and their size
depends on the widths alone, never on the number of tokens.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_ROWS = 4096  # rows converted to float64 at a time


class Moments:
    """First and, if ``second``, second moments of paired rows a (n x p) and b (n x q).

    Read as averages per row: ``mean_a`` (p), ``mean_b`` (q), and the centred ``cov_aa`` (p x p),
    ``cov_ab`` (p x q) and ``var_b`` (the trace of b's covariance); all float64.
    """

    def __init__(self, p: int, q: int, *, second: bool, device: torch.device | str = "cpu") -> None:
        def zeros(*size: int) -> Tensor:
            return torch.zeros(size, dtype=torch.float64, device=device)

        self.n = 0
        self.second = second
        self._sum_a, self._sum_b, self._sum_bb = zeros(p), zeros(q), zeros()
        self._sum_aa = zeros(p, p) if second else zeros(0, 0)
        self._sum_ab = zeros(p, q) if second else zeros(0, 0)

    @staticmethod
    def nbytes(p: int, q: int, *, second: bool) -> int:
        """What such moments take."""
        return 8 * (p + q + 1 + (p * (p + q) if second else 0))

    def add(self, a: Tensor, b: Tensor) -> None:
        """Count the rows of ``a`` and ``b`` in."""
        self.n += a.shape[0]
        for start in range(0, a.shape[0], _ROWS):
            wide_a, wide_b = a[start : start + _ROWS].double(), b[start : start + _ROWS].double()
            self._sum_a += wide_a.sum(0)
            self._sum_b += wide_b.sum(0)
            if self.second:
                self._sum_aa.addmm_(wide_a.T, wide_a)
                self._sum_ab.addmm_(wide_a.T, wide_b)
                self._sum_bb += wide_b.square().sum()

    def select(self, columns: Tensor) -> Moments:
        """The moments of ``a[:, columns]`` and b."""
        chosen = Moments(0, 0, second=False)
        chosen.n, chosen.second = self.n, self.second
        chosen._sum_a, chosen._sum_b, chosen._sum_bb = self._sum_a[columns], self._sum_b, self._sum_bb
        if self.second:
            chosen._sum_aa = self._sum_aa[columns][:, columns]
            chosen._sum_ab = self._sum_ab[columns]
        return chosen

    def through(self, mapping: Tensor) -> Moments:
        """The moments of ``mapping a`` and b; mapping p' x p, float64."""
        mapped = Moments(0, 0, second=False)
        mapped.n, mapped.second = self.n, self.second
        mapped._sum_a, mapped._sum_b, mapped._sum_bb = mapping @ self._sum_a, self._sum_b, self._sum_bb
        if self.second:
            mapped._sum_aa = mapping @ self._sum_aa @ mapping.T
            mapped._sum_ab = mapping @ self._sum_ab
        return mapped

    @property
    def mean_a(self) -> Tensor:
        return self._sum_a / self.n

    @property
    def mean_b(self) -> Tensor:
        return self._sum_b / self.n

    @property
    def cov_aa(self) -> Tensor:
        return (self._sum_aa / self.n).addr_(self.mean_a, self.mean_a, alpha=-1)

    @property
    def cov_ab(self) -> Tensor:
        return (self._sum_ab / self.n).addr_(self.mean_a, self.mean_b, alpha=-1)

    @property
    def var_b(self) -> Tensor:
        return (self._sum_bb / self.n - self.mean_b.square().sum()).clamp_min(0)

    def residual(self, weight: Tensor, bias: Tensor) -> Tensor:
        """Mean of ||b - weight a - bias||^2 over the rows; weight q x p, bias q."""
        weight, bias = weight.double(), bias.double()
        spread = self.var_b - 2 * (weight.T * self.cov_ab).sum() + ((weight @ self.cov_aa) * weight).sum()
        offset = self.mean_b - weight @ self.mean_a - bias
        return (spread + offset.square().sum()).clamp_min(0)

    def relative_error(self, weight: Tensor, bias: Tensor) -> float:
        """||b - weight a - bias||^2 / ||b - mean b||^2 (method.md section 2).

        Where b hardly varies, float64's rounding of its energy stands in for its variance.
        """
        floor = self._sum_bb / self.n * torch.finfo(torch.float64).eps + torch.finfo(torch.float64).tiny
        return float(self.residual(weight, bias) / torch.maximum(self.var_b, floor))


@dataclass(frozen=True)
class Twin:
    """Moments to fit on, and moments of other rows to judge by."""

    fit: Moments
    held: Moments

    @classmethod
    def empty(cls, p: int, q: int, *, means_only: bool = False, device: torch.device | str = "cpu") -> Twin:
        """``means_only``: the fit needs means only; the judging side is always complete."""
        return cls(Moments(p, q, second=not means_only, device=device), Moments(p, q, second=True, device=device))

    @staticmethod
    def nbytes(p: int, q: int, *, means_only: bool = False) -> int:
        """What such a pair takes."""
        return Moments.nbytes(p, q, second=not means_only) + Moments.nbytes(p, q, second=True)

    def add(self, a: Tensor, b: Tensor, cut: int) -> None:
        """Rows before ``cut`` are fitted on, rows from ``cut`` on are held out."""
        self.fit.add(a[:cut], b[:cut])
        self.held.add(a[cut:], b[cut:])

    def select(self, columns: Tensor) -> Twin:
        """Both sides restricted to some columns of a."""
        return Twin(self.fit.select(columns), self.held.select(columns))

    def through(self, mapping: Tensor) -> Twin:
        """Both sides with ``mapping a`` in the place of a."""
        return Twin(self.fit.through(mapping), self.held.through(mapping))
