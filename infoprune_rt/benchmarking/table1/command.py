"""What the command line asks of Table 1, made sure of before anything is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infoprune_rt.benchmarking.table1.accuracy import handwriting
from infoprune_rt.benchmarking.table1.building import RATIO_QUESTIONS, Choice
from infoprune_rt.benchmarking.table1.workloads import workload
from infoprune_rt.errors import InfopruneError
from infoprune_rt.evaluation.dataset import VQADataset
from infoprune_rt.evaluation.formats import read_datasets
from infoprune_rt.evaluation.image_folder import require_images

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


@dataclass(frozen=True)
class Questions:
    """scored: what the accuracy column is about; calibration: what chooses YOPO's heads. None: there are none."""

    scored: VQADataset | None = None
    calibration: VQADataset | None = None

    @property
    def digest(self) -> str | None:
        """Of both."""
        found = [part.digest for part in (self.scored, self.calibration) if part is not None]
        return "-".join(found) or None


def questions(
    choice: Choice, data: Sequence[Path] | None, images: Path | None, annotations: Path | None, limit: int
) -> Questions:
    """What is asked; nothing where weights are random, or no questions were given.

    The first ``limit`` questions are scored. Those behind them choose YOPO's heads, so that it is not calibrated on
    what it is scored by; where there are none, heads are dropped evenly.
    """
    if (choice.model is None) != (choice.compact is None):
        raise InfopruneError("--model and --compact go together: the dense checkpoint and what was made of it")
    if not data and (images is not None or annotations is not None):
        raise InfopruneError("--images and --annotations belong to --data: give the questions, too")
    if data and (choice.model is None or images is None):
        raise InfopruneError("--data needs --model (a preset's random weights answer nothing) and --images")
    if data and images is not None:
        found = read_datasets(list(data), images, annotations)
        asked = found[: limit + RATIO_QUESTIONS]
        require_images(asked.image_paths, "refuse")
        return Questions(asked[:limit], asked[limit:] if len(asked) > limit else None)
    return Questions(handwriting()[:limit]) if choice.preset == "tiny" else Questions()


def result_file(out: Path) -> Path:
    """Where the result is to be written, once it is known that it can be."""
    if out.suffix != ".json" or out.is_dir():
        raise InfopruneError(f"--json: {out} must be a file that ends in .json; .md and .html are written beside it")
    return out
