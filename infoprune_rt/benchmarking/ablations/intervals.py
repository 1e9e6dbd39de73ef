"""Means over seeds with Student's interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.special import stdtrit

from infoprune_rt.errors import InfopruneError

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean of ``n`` values and half the width of its 95 % interval; None where one value says nothing of spread."""

    mean: float
    half_width: float | None
    n: int

    @property
    def low(self) -> float | None:
        """The interval's lower end."""
        return None if self.half_width is None else self.mean - self.half_width

    @property
    def high(self) -> float | None:
        """The interval's upper end."""
        return None if self.half_width is None else self.mean + self.half_width

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if self.half_width is None else f"{self.mean:.1f} ± {self.half_width:.1f}"


def estimate(values: Sequence[float]) -> Estimate:
    """mean ± t_{n-1, 0.975} s / sqrt(n), s the sample standard deviation (Student 1908)."""
    if not values:
        raise InfopruneError("a mean needs at least one value")
    n = len(values)
    if n == 1:
        return Estimate(values[0], None, 1)
    quantile = float(stdtrit(n - 1, (1 + CONFIDENCE) / 2))
    return Estimate(fmean(values), quantile * stdev(values) / math.sqrt(n), n)
