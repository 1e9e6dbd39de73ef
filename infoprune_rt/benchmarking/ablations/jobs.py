"""Rows still to be measured, and how long that will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from infoprune_rt.benchmarking.ablations.subject import Subject
from infoprune_rt.benchmarking.ablations.work_file import Row
from infoprune_rt.evaluation.answering import answer
from infoprune_rt.plan import FFNPlan
from infoprune_rt.pruning.gate_gradient import collate_parts, gate_gradient
from infoprune_rt.pruning.task_loss import frozen

PROBE = 64  # questions


@dataclass(frozen=True)
class Cost:
    """What a job takes, in things whose time a probe can tell. learning: the name of the run that is paid once."""

    questions: int = 0
    steps: int = 0
    fits: int = 0
    learning: str | None = None


@dataclass(frozen=True)
class Job:
    """One row: ``key`` is what it is found by and the row's first fields; ``measure`` gives the others."""

    key: Row
    measure: Callable[[], dict[str, Any]]
    cost: Cost = field(default_factory=Cost)

    @property
    def title(self) -> str:
        """For the progress bar."""
        seed = f", seed {self.key['seed']}" if self.key.get("seed") is not None else ""
        return f"{self.key['group']}: {self.key['name']}{seed}"


@dataclass(frozen=True)
class Rates:
    """Seconds a question answered, a step of learning zeta, a fit of all FFNs."""

    question: float
    step: float
    fit: float

    @classmethod
    def probe(cls, subject: Subject) -> Rates:
        """Measured on this machine and model: a few questions, one step, one fit."""
        model, processor, options = subject.vlm.model, subject.vlm.processor, subject.options
        questions = subject.data.test[:PROBE]
        parts = collate_parts(
            subject.batches, range(min(options.batch_size, len(subject.batches))), options.micro_batch
        )
        ones = torch.ones(len(subject.heads.blocks), subject.heads.num_heads, device=model.device)

        def step() -> None:
            with frozen(model):
                gate_gradient(model, subject.heads, ones, parts)

        def fit() -> None:
            subject.bench.variant("", "", subject.plan(None, FFNPlan(mode="rrr", size=16)))

        answering = _seconds(lambda: answer(model, processor, questions, options.answer_batch, progress=False))
        return cls(answering / len(questions), _seconds(step), _seconds(fit))

    def seconds(self, jobs: Sequence[Job]) -> float:
        """About how long these take; what several share is counted once."""
        learnt = {job.cost.learning: job.cost.steps for job in jobs if job.cost.learning is not None}
        steps = sum(learnt.values()) + sum(job.cost.steps for job in jobs if job.cost.learning is None)
        questions = sum(job.cost.questions for job in jobs)
        return self.question * questions + self.step * steps + self.fit * sum(job.cost.fits for job in jobs)


def _seconds(call: Callable[[], object]) -> float:
    """Of the second call: the first one warms up."""
    call()
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
