"""Rows still to be measured, and how long that will take."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from infoprune_rt.benchmarking.ablations.following import calibration_gram, information_slopes
from infoprune_rt.benchmarking.ablations.subject import Subject
from infoprune_rt.benchmarking.ablations.work_file import Row
from infoprune_rt.evaluation.answering import answer
from infoprune_rt.plan import FFNPlan
from infoprune_rt.pruning.gate_gradient import collate_parts, gate_gradient
from infoprune_rt.pruning.information import singular_values_from_gram
from infoprune_rt.pruning.task_loss import frozen

PROBE = 64  # questions


@dataclass(frozen=True)
class Cost:
    """What a job takes, in things whose time a probe can tell: questions answered; steps of learning, and those of them
    that go through the whole model; fits of all FFNs. learning: the name of the run that jobs share and pay once."""

    questions: int = 0
    steps: int = 0
    task_steps: int = 0
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
    """Seconds a question, a step (its information terms), a step's task loss, a fit."""

    question: float
    step: float
    task_step: float
    fit: float

    @classmethod
    def probe(cls, subject: Subject) -> Rates:
        """Measured on this machine and model: a few questions, one step, one fit."""
        model, processor, options = subject.vlm.model, subject.vlm.processor, subject.options
        questions = subject.data.test[:PROBE]
        items = range(min(options.batch_size, len(subject.batches)))
        gram = calibration_gram(subject, seed=0, limit=len(items))
        dense = singular_values_from_gram(gram)
        zeta = torch.ones(len(gram), subject.heads.num_heads, device=gram.device, requires_grad=True)

        def answering() -> None:
            answer(model, processor, questions, options.answer_batch, progress=False)

        def step() -> None:
            information_slopes(gram, dense, zeta, subject.heads.head_dim)

        def task_step() -> None:
            parts = collate_parts(subject.batches, items, options.micro_batch)
            with frozen(model):
                gate_gradient(model, subject.heads, zeta.detach().to(model.device), parts)

        def fit() -> None:
            subject.bench.variant("", "", subject.plan(None, FFNPlan(mode="rrr", size=16)))

        question = _seconds(answering) / len(questions)
        return cls(question, _seconds(step), _seconds(task_step), _seconds(fit))

    def seconds(self, jobs: Sequence[Job]) -> float:
        """About how long these take; what several share is counted once."""
        costs = [job.cost for job in jobs]
        learning = [*{c.learning: c for c in costs if c.learning}.values(), *(c for c in costs if not c.learning)]
        return (
            self.question * sum(c.questions for c in costs)
            + self.step * sum(c.steps for c in learning)
            + self.task_step * sum(c.task_steps for c in learning)
            + self.fit * sum(c.fits for c in costs)
        )


def _seconds(call: Callable[[], object]) -> float:
    """Of the second call: the first one warms up."""
    call()
    began = time.perf_counter()
    call()
    return time.perf_counter() - began
