"""What a benchmark set out to show, beside what it showed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Target:
    """A figure that has to be at least, or at most, another. aim: what would be better still; nothing depends on it."""

    name: str
    reached: float
    at_least: float | None = None
    at_most: float | None = None
    aim: float | None = None

    @property
    def met(self) -> bool:
        """Whether the figure is on the right side of its bound; NaN never is."""
        above = self.at_least is None or self.reached >= self.at_least
        below = self.at_most is None or self.reached <= self.at_most
        return above and below

    def to_dict(self) -> dict[str, Any]:
        """For a result file."""
        return {**asdict(self), "met": self.met}

    def __str__(self) -> str:
        bound = f"at least {self.at_least:g}" if self.at_least is not None else f"at most {self.at_most:g}"
        return f"{'met   ' if self.met else 'MISSED'} {self.name}: {self.reached:.4g} ({bound})"
