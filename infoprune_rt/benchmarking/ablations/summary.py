"""Rows of one study put together: means with intervals over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from infoprune_rt.benchmarking.ablations.intervals import Estimate, estimate
from infoprune_rt.benchmarking.ablations.work_file import Row

FAMILIES = {"vqa": "VQA", "text": "text", "relations": "relations", "overall": "all"}


def select(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """The rows in which every named field has this value."""
    return [row for row in rows if all(row.get(name) == value for name, value in wanted.items())]


def values(rows: Sequence[Row], name: str) -> list[Any]:
    """The different values of a field, in order of first use; None is none."""
    return list(dict.fromkeys(row[name] for row in rows if row.get(name) is not None))


def families(rows: Sequence[Row]) -> dict[str, str]:
    """Those of the task families that were asked about, by the key in a row's accuracy, as they are shown."""
    return {key: shown for key, shown in FAMILIES.items() if any(key in row["accuracy"] for row in rows)}


def over_seeds(rows: Sequence[Row], family: str = "overall") -> Estimate | None:
    """Accuracy in % over the rows' seeds; None without rows."""
    found = [row["accuracy"][family] for row in rows if family in row["accuracy"]]
    return estimate(found) if found else None


def lead(better: Sequence[Row], worse: Sequence[Row], family: str = "overall") -> Estimate | None:
    """Points that one way is ahead of another, paired by seed (a way without seeds is paired with each)."""
    other = {row.get("seed"): row["accuracy"][family] for row in worse}
    partner: Callable[[Any], Any] = other.get if len(worse) > 1 else lambda seed: next(iter(other.values()), None)
    gaps = [
        row["accuracy"][family] - partner(row.get("seed")) for row in better if partner(row.get("seed")) is not None
    ]
    return estimate(gaps) if gaps else None


def cell(found: Estimate | None) -> str:
    """For a table; a dash where nothing was measured."""
    return "–" if found is None else str(found)
