"""One door to all ways of scoring heads."""

from __future__ import annotations

from pathlib import Path

from accelerate import Accelerator
from torch import nn

from infoprune_rt.errors import InfopruneError
from infoprune_rt.pruning.head_scores import (
    SCORE_METHODS,
    HeadScores,
    ScoreMethod,
    magnitude_scores,
    michel_scores,
    random_scores,
)
from infoprune_rt.pruning.head_training import SCORES, HeadTrainingSettings, train_heads
from infoprune_rt.pruning.task_loss import TrainingBatches
from infoprune_rt.towers.base import TowerAdapter


def score_heads(
    method: ScoreMethod,
    model: nn.Module,
    adapter: TowerAdapter,
    batches: TrainingBatches,
    settings: HeadTrainingSettings,
    out_dir: Path,
    accelerator: Accelerator | None = None,
) -> HeadScores:
    """Score every head by ``method`` and write ``head-scores.json`` into ``out_dir``, whatever the method.

    "zeta" trains (``train_heads``); "michel" takes steps, batch_size, seed, micro_batch and checkpoint_activations from
    ``settings``, "random" the seed;
    each process computes a control whole, and the main one writes it.
    """
    if method == "zeta":
        return train_heads(model, adapter, batches, settings, out_dir, accelerator)
    scores = _control(method, model, adapter, batches, settings)
    if accelerator is None or accelerator.is_main_process:
        scores.write(Path(out_dir) / SCORES)
    return scores


def _control(
    method: ScoreMethod,
    model: nn.Module,
    adapter: TowerAdapter,
    batches: TrainingBatches,
    settings: HeadTrainingSettings,
) -> HeadScores:
    if method == "michel":
        names = ("steps", "batch_size", "seed", "micro_batch", "checkpoint_activations")
        return michel_scores(model, adapter, batches, **{name: getattr(settings, name) for name in names})
    if method == "magnitude":
        return magnitude_scores(model, adapter)
    if method == "random":
        return random_scores(model, adapter, seed=settings.seed)
    raise InfopruneError(f"unknown score method {method!r}; known are {', '.join(SCORE_METHODS)}")
