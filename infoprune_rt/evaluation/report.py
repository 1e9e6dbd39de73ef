"""Accuracy by task family: what an evaluation says."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from transformers import PreTrainedModel
from transformers.processing_utils import ProcessorMixin

from infoprune_rt.errors import InfopruneError
from infoprune_rt.evaluation.answering import Answer, answer
from infoprune_rt.evaluation.dataset import FAMILIES, VQADataset, VQAExample
from infoprune_rt.evaluation.images import OnCorrupt
from infoprune_rt.evaluation.metric import Mode, exact_match, vqa_accuracy


def score(example: VQAExample, text: str, mode: Mode) -> float:
    """0..1: exact match for GQA-like questions ("relations"), VQA accuracy for the others."""
    if example.family == "relations":
        return exact_match(text, example.answers[0])
    return vqa_accuracy(text, example.answers, mode, example.family)


def accuracy(dataset: VQADataset, answers: Sequence[Answer], mode: Mode) -> dict[str, Any]:
    """Percent right by family and ``overall`` (over all questions, not over families).

    Questions whose image was skipped count nowhere but under ``skipped``; ``mode`` names the normalisation.
    """
    scores: dict[str, list[float]] = {}
    skipped = 0
    for example, given in zip(dataset, answers, strict=True):
        if given.question_id != example.question_id:
            raise InfopruneError(
                f"an answer to question {given.question_id} stands where {example.question_id} is asked"
            )
        if given.text is None:
            skipped += 1
        else:
            scores.setdefault(example.family, []).append(score(example, given.text, mode))
    everything = [value for values in scores.values() for value in values]
    if not everything:
        raise InfopruneError(f"no question could be scored ({skipped} skipped for a corrupt image)")
    percent = {family: 100 * fmean(scores[family]) for family in FAMILIES if family in scores}
    return percent | {
        "overall": 100 * fmean(everything),
        "mode": mode,
        "questions": len(everything),
        "skipped": skipped,
    }


def summary(dataset: VQADataset, answers: Sequence[Answer], mode: Mode) -> dict[str, Any]:
    """``accuracy``'s table, and ``skipped_images``: which, and why."""
    skipped = {e.image_path: a.why for e, a in zip(dataset, answers, strict=True) if a.text is None}
    named = [{"image": str(path), "why": why} for path, why in skipped.items()]
    return accuracy(dataset, answers, mode) | {"skipped_images": named}


def evaluate(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: VQADataset,
    *,
    batch_size: int = 64,
    max_new_tokens: int = 16,
    mode: Mode = "official",
    on_corrupt: OnCorrupt = "refuse",
    progress: bool = True,
) -> dict[str, Any]:
    """Answer the data set and score it: ``summary``'s table."""
    return summary(dataset, answer(model, processor, dataset, batch_size, max_new_tokens, on_corrupt, progress), mode)
