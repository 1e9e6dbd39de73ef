"""How a step of ``make gpu`` ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["passed", "failed", "not available", "left out"]


@dataclass(frozen=True)
class Verdict:
    """status: only "failed" makes the whole fail. told: in one line, what is worth knowing."""

    status: Status
    told: str
