"""One evaluation from checkpoint to scores: judged before anything is loaded, resumable where it has a file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from infoprune_rt import checkpoint
from infoprune_rt.evaluation.answer_log import AnswerLog
from infoprune_rt.evaluation.answering import answer, answer_batches
from infoprune_rt.evaluation.dataset import VQADataset
from infoprune_rt.evaluation.image_folder import require_images
from infoprune_rt.evaluation.images import OnCorrupt
from infoprune_rt.evaluation.metric import Mode
from infoprune_rt.evaluation.report import summary
from infoprune_rt.evaluation.weight_memory import require_weight_memory
from infoprune_rt.hub import SMALL_FILES, fetch, resolve_model_dir
from infoprune_rt.model_loading import LoadedVLM, load_any_vlm
from infoprune_rt.shards import weight_map


def evaluate_checkpoint(
    model: str | Path,
    dataset: VQADataset,
    *,
    device: torch.device,
    batch_size: int = 64,
    max_new_tokens: int = 16,
    mode: Mode = "official",
    on_corrupt: OnCorrupt = "refuse",
    out: Path | None = None,
    data_names: Sequence[str] = (),
    progress: bool = True,
) -> dict[str, Any]:
    """Answer ``dataset`` with a dense or compact model and score it: ``report.summary``'s table.

    out: an ``AnswerLog``; data_names: the questions' files, to be named in it. An earlier run's file is resumed
    (``resumed``: how many questions it had answered), a finished one is scored without loading the model, and one with
    another model, other questions or other options is refused; ``on_corrupt`` may differ. Raises InfopruneError before
    loading where images or memory are wanting.
    """
    if out is None:
        vlm = _load(model, device, dataset, on_corrupt)
        given = answer(vlm.model, vlm.processor, dataset, batch_size, max_new_tokens, on_corrupt, progress)
        return summary(dataset, given, mode)
    run = {
        "model": {"name": str(model), "sha256": model_digest(resolve_model_dir(model))},
        "questions": {"files": list(data_names), "number": len(dataset), "sha256": dataset.digest},
        "max_new_tokens": max_new_tokens,
    }
    with closing(AnswerLog(out, dataset, batch_size, mode, run)) as log:
        if log.left:
            vlm = _load(model, device, dataset, on_corrupt)
            for batch, said in answer_batches(
                vlm.model, vlm.processor, dataset, log.left, max_new_tokens, on_corrupt, progress
            ):
                log.append(batch, said)
        return summary(dataset, log.answers(), mode) | {"resumed": log.resumed}


def _load(model: str | Path, device: torch.device, dataset: VQADataset, on_corrupt: OnCorrupt) -> LoadedVLM:
    require_images(dataset.image_paths, on_corrupt)
    require_weight_memory(resolve_model_dir(model), device)
    return load_any_vlm(model, device)


def model_digest(directory: Path) -> str:
    """SHA-256 over a checkpoint's files; a compact one's manifest, checked on loading, has theirs already."""
    if (directory / checkpoint.MANIFEST).is_file():
        return hashlib.sha256((directory / checkpoint.MANIFEST).read_bytes()).hexdigest()
    weights = set(weight_map(directory, stem="model").values())
    fetch(directory, weights)
    small = {path.name for pattern in SMALL_FILES for path in directory.glob(pattern)}
    found = hashlib.sha256()
    for name in sorted(weights | small):
        with (directory / name).open("rb") as file:
            found.update(name.encode() + hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()
