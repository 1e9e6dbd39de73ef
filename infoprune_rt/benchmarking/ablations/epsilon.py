"""Table 4: epsilon and the size k of every FFN against accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from infoprune_rt.benchmarking.ablations.jobs import Cost, Job
from infoprune_rt.benchmarking.ablations.subject import Subject
from infoprune_rt.benchmarking.ablations.work_file import Row
from infoprune_rt.plan import FFNMode, FFNPlan
from infoprune_rt.pruning.ffn_forms import round_size

GROUP = "epsilon"
MODES: tuple[FFNMode, ...] = ("taylor", "rrr", "neurons", "hybrid")
_WITH_NEURONS = ("neurons", "hybrid")
CLOSE = 1.0  # points below a curve's best that still count as level with it


def jobs(subject: Subject) -> list[Job]:
    """Every mode at every epsilon and at every size; heads stay whole."""
    cost = Cost(len(subject.data.test), fits=1)
    found = []
    for mode in MODES:
        for epsilon in subject.options.epsilons:
            key = {"group": GROUP, "name": mode, "epsilon": epsilon, "size": None}
            found.append(Job(key, partial(_measure, subject, mode, epsilon, None), cost))
        for size in sizes(subject, mode):
            key = {"group": GROUP, "name": mode, "epsilon": None, "size": size}
            found.append(Job(key, partial(_measure, subject, mode, None, size), cost))
    return found


def sizes(subject: Subject, mode: FFNMode) -> list[int]:
    """Ranks, or kept neurons (in hybrids with the rank beside them), from the shares that the options name."""
    shape, options = subject.shape, subject.options
    shares, width = (options.neurons, shape.ffn_width) if mode in _WITH_NEURONS else (options.ranks, shape.width)
    return sorted({round_size(round(share * width), width) for share in shares})


def form(mode: FFNMode, *, epsilon: float | None = None, size: int | None = None) -> FFNPlan:
    """The paper's mode as the paper has it, with the Taylor expansion's own constant."""
    return FFNPlan(mode=mode, epsilon=epsilon, size=size, bias="taylor" if mode == "taylor" else "mean")


def _measure(subject: Subject, mode: FFNMode, epsilon: float | None, size: int | None) -> dict[str, Any]:
    plan = subject.plan(None, form(mode, epsilon=epsilon, size=size), sequential=mode != "taylor")
    return subject.measured(subject.bench.variant(mode, mode, plan))


def knee(rows: Sequence[Row]) -> Row:
    """Of one curve, the row with the fewest parameters left within ``CLOSE`` points of its best."""
    best = max(row["accuracy"]["overall"] for row in rows)
    level = [row for row in rows if row["accuracy"]["overall"] >= best - CLOSE]
    return min(level, key=lambda row: row["parameters_left"])
