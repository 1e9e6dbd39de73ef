"""What the command line asks of Table 1, made sure of before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from infoprune_rt.benchmarking.table1.accuracy import handwriting
from infoprune_rt.benchmarking.table1.building import Choice
from infoprune_rt.benchmarking.table1.workloads import workload
from infoprune_rt.errors import InfopruneError
from infoprune_rt.evaluation.dataset import VQADataset
from infoprune_rt.evaluation.formats import read_datasets

_NATIVE = "native"


def chosen_workloads(preset: str | None, wanted: Sequence[str] | None) -> tuple[str, ...]:
    """The workloads' names. The tiny VLM knows scenes of one size alone, and the others have no use for them."""
    names = tuple(wanted or ([_NATIVE] if preset == "tiny" else ["coco"]))
    for name in names:
        workload(name)
        if (name == _NATIVE) != (preset == "tiny"):
            told = f"takes the workload {_NATIVE!r} alone" if preset == "tiny" else f"has no use for {name!r}"
            raise InfopruneError(f"--workload: {'preset tiny' if preset == 'tiny' else 'a model of this size'} {told}")
    return tuple(dict.fromkeys(names))


def questions(
    choice: Choice, data: Sequence[Path] | None, images: Path | None, annotations: Path | None, limit: int
) -> VQADataset | None:
    """What is asked for the accuracy column; None where weights are random, or no questions were given."""
    if (choice.model is None) != (choice.compact is None):
        raise InfopruneError("--model and --compact go together: the dense checkpoint and what was made of it")
    if data and (choice.model is None or images is None):
        raise InfopruneError("--data needs --model (a preset's random weights answer nothing) and --images")
    if data and images is not None:
        return read_datasets(list(data), images, annotations)[:limit]
    return handwriting()[:limit] if choice.preset == "tiny" else None
