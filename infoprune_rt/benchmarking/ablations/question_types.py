"""Which questions suffer when FFNs become linear, block after block."""

from __future__ import annotations

from functools import cached_property, partial
from typing import Any

from infoprune_rt.benchmarking.ablations.epsilon import form
from infoprune_rt.benchmarking.ablations.jobs import Cost, Job
from infoprune_rt.benchmarking.ablations.subject import Subject
from infoprune_rt.plan import FFNMode

GROUP = "question types"
MODES: tuple[FFNMode, ...] = ("rrr", "taylor")
DENSE = "dense"


def jobs(subject: Subject) -> list[Job]:
    """The dense model; then, by the best and by the paper's linear map, a growing number of linear blocks."""
    study, questions = _Study(subject), len(subject.data.test)
    found = [Job({"group": GROUP, "name": DENSE, "linear_blocks": 0}, subject.dense, Cost(questions))]
    counts = sorted({max(1, round(share * subject.used_blocks)) for share in subject.options.linear_shares})
    for mode in MODES:
        for count in counts:
            key = {"group": GROUP, "name": mode, "linear_blocks": count}
            found.append(Job(key, partial(study.measure, mode, count), Cost(questions, fits=1)))
    return found


class _Study:
    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.rank = subject.shape.width // 2  # above it the merged map is cheaper and exact

    @cached_property
    def order(self) -> list[int]:
        """Blocks by the held-out error of their best linear map, most linear first."""
        plan = self.subject.plan(None, form("rrr", size=self.rank), sequential=False)
        fitted = self.subject.bench.variant("", "", plan).applied.plan.blocks[: self.subject.used_blocks]
        errors = [float("inf") if block.ffn.held_out_error is None else block.ffn.held_out_error for block in fitted]
        return sorted(range(len(errors)), key=errors.__getitem__)

    def measure(self, mode: FFNMode, count: int) -> dict[str, Any]:
        """The ``count`` most linear blocks made linear; all others stay dense."""
        rest = self.order[count:]
        plan = self.subject.plan(None, form(mode, size=self.rank), dense_blocks=rest, sequential=mode != "taylor")
        measured = self.subject.measured(self.subject.bench.variant(mode, mode, plan))
        return {"linear": sorted(self.order[:count]), **measured}
