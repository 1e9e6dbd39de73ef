"""The ways to score heads that the paper's Table 2 compares, and controls; each score is learnt once and kept."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

from infoprune_rt.benchmarking.ablations.following import Drive, follow
from infoprune_rt.benchmarking.ablations.jobs import Cost
from infoprune_rt.benchmarking.ablations.options import Options
from infoprune_rt.benchmarking.ablations.subject import Subject
from infoprune_rt.evaluation.training_batches import VQABatches
from infoprune_rt.pruning.head_methods import score_heads
from infoprune_rt.pruning.head_scores import HeadScores, ScoreMethod
from infoprune_rt.pruning.head_training import SCORES, HeadTrainingSettings

PAPER, TASK_KS, TASK_ERANK, TASK = "task + eRank + KS", "task + KS", "task + eRank", "task"
WITH_TASK: dict[str, tuple[bool, bool]] = {  # whether eRank, whether KS
    PAPER: (True, True),
    TASK_ERANK: (True, False),
    TASK_KS: (False, True),
    TASK: (False, False),
}
ALONE = {
    "eRank alone": Drive({"erank": 1.0}, jitter=0.1),
    "KS alone": Drive({"ks": 1.0}, jitter=0.1),
}
CONTROLS: dict[str, ScoreMethod] = {"Michel's gradient": "michel", "magnitude": "magnitude", "random": "random"}
WAYS = (*WITH_TASK, *ALONE, *CONTROLS)
MICHEL_SHARE = 10  # Michel's gradient takes this many times fewer batches: it learns nothing step by step


def seeds_of(way: str, options: Options) -> range:
    """Weights alone have no seed."""
    return range(1 if way == "magnitude" else options.seeds)


def learning_cost(way: str, seed: int, options: Options) -> Cost:
    """The steps through the whole model that a score takes."""
    steps = options.steps if way in WITH_TASK else _michel_steps(options) if way == "Michel's gradient" else 0
    return Cost(steps=steps, learning=f"{way}, seed {seed}")


def scores(
    subject: Subject, way: str, seed: int, batches: VQABatches | None = None, place: str = "plain"
) -> HeadScores:
    """Learnt now, or read if it was before. batches: other questions than the calibration data's; kept in ``place``."""
    folder = subject.work / "heads" / place / f"{_slug(way)}-{seed}"
    if (folder / SCORES).exists():
        return HeadScores.read(folder / SCORES)
    if way in ALONE:
        return _alone(subject, way, seed, folder)
    options = subject.options
    erank, ks = WITH_TASK.get(way, (False, False))
    settings = HeadTrainingSettings(
        steps=_michel_steps(options) if way in CONTROLS else options.steps,
        batch_size=options.batch_size,
        beta=options.beta * erank,
        gamma=options.gamma * ks,
        seed=seed,
        micro_batch=options.micro_batch,
        checkpoint_activations=options.checkpoint_activations,
    )
    vlm = subject.vlm
    method = CONTROLS.get(way, "zeta")
    return score_heads(
        method, vlm.model, vlm.adapter, batches or subject.batches, settings, folder, subject.accelerator
    )


def _alone(subject: Subject, way: str, seed: int, folder: Path) -> HeadScores:
    """By one information term without the task loss; no answer is read."""
    trace = follow(subject, ALONE[way], steps=subject.options.steps, seed=seed, task_every=None)
    settings = {**asdict(ALONE[way]), "steps": subject.options.steps, "seed": seed}
    found = HeadScores.of("zeta", subject.vlm.adapter.architecture, trace.zeta, settings=settings)
    found.write(folder / SCORES)
    return found


def _michel_steps(options: Options) -> int:
    return max(1, options.steps // MICHEL_SHARE)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
