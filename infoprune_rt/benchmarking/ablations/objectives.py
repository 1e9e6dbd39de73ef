"""The ways to score heads that the paper's Table 2 compares, and controls; each score is learnt once and kept."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path

from infoprune_rt.benchmarking.ablations.following import Drive, follow
from infoprune_rt.benchmarking.ablations.jobs import Cost
from infoprune_rt.benchmarking.ablations.options import Options
from infoprune_rt.benchmarking.ablations.styles import PLAIN
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
BOTH_ALONE, ERANK_ALONE, KS_ALONE = "eRank + KS alone", "eRank alone", "KS alone"
ALONE = {
    BOTH_ALONE: Drive({"erank": 1.0, "ks": 1.0}, jitter=0.1),
    ERANK_ALONE: Drive({"erank": 1.0}, jitter=0.1),
    KS_ALONE: Drive({"ks": 1.0}, jitter=0.1),
}
MICHEL, MAGNITUDE, RANDOM = "Michel's gradient", "magnitude", "random"
CONTROLS: dict[str, ScoreMethod] = {MICHEL: "michel", MAGNITUDE: "magnitude", RANDOM: "random"}
WAYS = (*WITH_TASK, *ALONE, *CONTROLS)
MICHEL_SHARE = 10  # Michel's gradient takes this many times fewer batches: it learns nothing step by step


def seeds_of(way: str, options: Options) -> range:
    """Weights alone have no seed."""
    return range(1 if way == MAGNITUDE else options.seeds)


def cost(subject: Subject, way: str, seed: int, *, fits: int, style: str = PLAIN) -> Cost:
    """Of a row by this score, learnt on this style."""
    options = subject.options
    steps = 0 if way in CONTROLS else options.steps
    task_steps = _michel_steps(options) if way == MICHEL else 0 if way in ALONE else steps
    return Cost(len(subject.data.test), steps, task_steps, fits, f"{way}, {style}, seed {seed}")


def scores(subject: Subject, way: str, seed: int, batches: VQABatches | None = None, style: str = PLAIN) -> HeadScores:
    """Learnt now, or read if it was before. batches: the calibration questions in another style than plain."""
    folder = subject.learnt / style / f"{_slug(way)}-{seed}"
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
    """By information terms without the task loss; no answer is read."""
    trace = follow(subject, ALONE[way], steps=subject.options.steps, seed=seed, task_every=None)
    settings = {**asdict(ALONE[way]), "steps": subject.options.steps, "seed": seed}
    found = HeadScores.of("zeta", subject.vlm.adapter.architecture, trace.zeta, settings=settings)
    found.write(folder / SCORES)
    return found


def _michel_steps(options: Options) -> int:
    return max(1, options.steps // MICHEL_SHARE)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
