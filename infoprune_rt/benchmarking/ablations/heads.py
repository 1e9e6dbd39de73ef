"""Table 2: what each term of the loss is worth, over the share of heads that goes, with and without refit."""

from __future__ import annotations

from functools import partial
from typing import Any

from infoprune_rt.benchmarking.ablations.jobs import Job
from infoprune_rt.benchmarking.ablations.objectives import WAYS, cost, scores, seeds_of
from infoprune_rt.benchmarking.ablations.subject import Subject
from infoprune_rt.pruning.selection import budget

GROUP = "heads"


def jobs(subject: Subject) -> list[Job]:
    """One row per way, seed, share removed and refit. The budget is the same for all: the top share of the tower."""
    options = subject.options
    return [
        Job(
            {"group": GROUP, "name": way, "seed": seed, "removed": removed, "refit": refit},
            partial(_measure, subject, way, seed, removed, refit),
            cost(subject, way, seed, fits=int(refit)),
        )
        for way in WAYS
        for seed in seeds_of(way, options)
        for removed in options.removed
        for refit in (False, True)
    ]


def _measure(subject: Subject, way: str, seed: int, removed: float, refit: bool) -> dict[str, Any]:
    masks = budget(scores(subject, way, seed), 1 - removed, used_blocks=subject.used_blocks)
    return subject.measured(subject.bench.variant(way, way, subject.plan(masks, refit=refit)))
