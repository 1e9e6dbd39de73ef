"""Table 1 from beginning to end: build, measure workload after workload, write; broken off, it goes on where it was."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infoprune_rt.baselines.yopo import DecoderShape
from infoprune_rt.benchmarking.environment import command, environment
from infoprune_rt.benchmarking.table1.accuracy import accuracies
from infoprune_rt.benchmarking.table1.building import Choice, build
from infoprune_rt.benchmarking.table1.command import Questions
from infoprune_rt.benchmarking.table1.goals import goals
from infoprune_rt.benchmarking.table1.measuring import Row, Step, measure
from infoprune_rt.benchmarking.table1.methods import methods
from infoprune_rt.benchmarking.table1.paper import PRINTED
from infoprune_rt.benchmarking.table1.profiling import profiles
from infoprune_rt.benchmarking.table1.subject import Subject
from infoprune_rt.benchmarking.table1.workloads import workload
from infoprune_rt.errors import InfopruneError
from infoprune_rt.evaluation.run import model_digest
from infoprune_rt.files import make_directory, write_text
from infoprune_rt.hub import resolve_model_dir


@dataclass(frozen=True)
class Options:
    """What is measured. new_tokens: that each generation makes; rounds: of timing."""

    choice: Choice
    workloads: tuple[str, ...]
    new_tokens: int
    rounds: int

    def to_dict(self) -> dict[str, Any]:
        """As it stands in files."""
        choice = {name: None if value is None else str(value) for name, value in asdict(self.choice).items()}
        return {**choice, "workloads": self.workloads, "new_tokens": self.new_tokens, "rounds": self.rounds}


def table1(options: Options, path: Path, asked: Questions, step: Step) -> dict[str, Any]:
    """Measure, write ``path`` and return what is in it.

    What was measured is kept in ``<path>.partial`` until all is; the same options, models and questions go on there.
    """
    work = [workload(name) for name in options.workloads]
    make_directory(path.parent)
    kept = _Kept(path.with_name(path.name + ".partial"), options.to_dict() | _identity(options.choice, asked))
    step("building the models")
    subject = build(options.choice, asked.calibration)
    rows_of = methods(subject.kernels)
    for each in work:
        if each.name not in kept.rows:
            kept.add(
                each.name,
                measure(subject, rows_of, each, new_tokens=options.new_tokens, rounds=options.rounds, step=step),
            )
    rows = [row for each in work for row in kept.rows[each.name]]
    if asked.scored is not None:
        found = accuracies(subject, rows_of, asked.scored, step)
        for row in rows:
            row["accuracy"] = found.get(f"{row['method']}, {row['execution']}, {row['engine']}")
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(),
        "environment": environment(),
        "options": options.to_dict(),
        "model": _model(subject),
        "questions": None if asked.scored is None else len(asked.scored),
        "sound": all(row["checked"] for row in rows),
        "goals": [goal.to_dict() for goal in goals(rows)],
        "rows": rows,
        "printed_in_the_paper": PRINTED,
        "profiles": profiles(subject, rows_of, work[0], step),
    }
    write_text(path, json.dumps(result, indent=1) + "\n")
    kept.path.unlink(missing_ok=True)
    return result


class _Kept:
    """The workloads that are done, on disk."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path, self._identity = path, json.loads(json.dumps(identity))
        self.rows: dict[str, list[Row]] = {}
        if path.exists():
            found = _read(path)
            if found["run"] != self._identity:
                raise InfopruneError(
                    f"{path} was left by a run with other options, models or questions; give the same ones to go on "
                    "with it, or remove it"
                )
            self.rows = found["rows"]

    def add(self, name: str, rows: list[Row]) -> None:
        self.rows[name] = rows
        write_text(self.path, json.dumps({"run": self._identity, "rows": self.rows}) + "\n")


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text())
        return {"run": found["run"], "rows": dict(found["rows"])}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InfopruneError(f"{path} is not what an interrupted run leaves; remove it to begin anew") from error


def _identity(choice: Choice, asked: Questions) -> dict[str, Any]:
    """What the models and questions hold, beside what they are called."""
    places = [place for place in (choice.model, choice.compact) if place is not None]
    return {"models": [model_digest(resolve_model_dir(place)) for place in places], "questions": asked.digest}


def _model(subject: Subject) -> dict[str, Any]:
    """What the rows are about."""
    settings = subject.yopo.fit(DecoderShape.of(subject.model.config))
    return {
        "weights": subject.weights,
        "dtype": str(subject.model.dtype).removeprefix("torch."),
        "tower": asdict(subject.shape),
        "decoder": asdict(subject.decoder),
        "compact_blocks": subject.compact.config.blocks,
        "yopo": {
            "live_heads": [sum(mask) for mask in settings.live],
            "layer_cut": settings.cut,
            "radius": settings.radius,
            "ffn_neurons": settings.neurons,
        },
    }
