"""What Table 1's rows answer, where weights are real."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from infoprune_rt.benchmarking.table1.measuring import Step
from infoprune_rt.benchmarking.table1.methods import Method
from infoprune_rt.benchmarking.table1.subject import Subject
from infoprune_rt.demo.handwriting import read_handwriting, write_handwriting
from infoprune_rt.evaluation.dataset import VQADataset
from infoprune_rt.evaluation.report import evaluate

_BATCH = 16  # questions at a time
_SCENES, _SEED = 40, 21  # of 8 questions each, others than in the demo and in the study of the tiny VLM


def accuracies(
    subject: Subject, rows: Sequence[Method], dataset: VQADataset, step: Step
) -> dict[str, dict[str, float]]:
    """Percent right by family and overall, of every row but torch.compile's, which would compile for every pack.

    YOPO serves one question at a time.
    """
    found = {}
    for method in rows:
        if method.tower == "compiled":
            continue
        step(f"{method.key}: answering {len(dataset)} questions")
        with subject.standing(method):
            scores = evaluate(
                subject.model,
                subject.processor,
                dataset,
                batch_size=_BATCH if method.yopo is None else 1,
                progress=False,
            )
        found[method.key] = {name: round(value, 2) for name, value in scores.items() if isinstance(value, float)}
    return found


def handwriting() -> VQADataset:
    """Held-out scenes for the tiny VLM; the pictures are kept until the process ends."""
    folder = Path(_FOLDER.name) / "held-out"
    if not folder.exists():
        write_handwriting(folder, "test", _SCENES, _SEED)
    return read_handwriting(folder)


_FOLDER = tempfile.TemporaryDirectory(prefix="infoprune-table1-")
