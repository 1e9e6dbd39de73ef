"""The whole run: list the rows, measure those that are missing, write the result and its pictures."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from infoprune_rt.benchmarking.ablations import epsilon, gradients, heads, question_types, shift
from infoprune_rt.benchmarking.ablations.figures import draw
from infoprune_rt.benchmarking.ablations.jobs import Job, Rates
from infoprune_rt.benchmarking.ablations.subject import Subject
from infoprune_rt.benchmarking.ablations.work_file import Row, WorkFile
from infoprune_rt.benchmarking.environment import command, environment
from infoprune_rt.errors import InfopruneError
from infoprune_rt.files import make_directory, write_text
from infoprune_rt.progress import progress_bars

ROWS = "rows.jsonl"
STUDIES = (heads, epsilon, gradients, question_types, shift)
Say = Callable[[str], None]


def run_ablations(subject: Subject, path: Path, say: Say) -> dict[str, Any]:
    """Measure what ``subject.work`` lacks, write ``path`` (JSON) with a picture per study beside it, clear the work.

    Called again after an interruption it measures no row twice and learns no finished zeta again. Raises
    InfopruneError if the work belongs to other options, another model or other data.
    """
    _require_place(path)
    began = datetime.now(UTC)
    if not (subject.work / ROWS).exists():
        _forget(subject)
    work = WorkFile(subject.work / ROWS, {**subject.options.identity(), **subject.identity()})
    jobs = [job for study in STUDIES for job in study.jobs(subject)]
    missing = [job for job in jobs if work.row(job.key) is None]
    say(f"{len(jobs)} rows, {len(jobs) - len(missing)} of them measured before (in {work.path})")
    if missing:
        minutes = Rates.probe(subject).seconds(missing) / 60
        say(f"about {max(1, round(minutes))} minutes at this machine's present speed; stop and go on as you like")
    _measure(missing, work)
    result = {
        "date": began.isoformat(timespec="seconds"),
        "command": command(),
        "environment": environment(),
        "model": subject.name,
        "questions": len(subject.data.test),
        "pictures": len(subject.data.test.image_paths),
        "options": subject.options.identity(),
        "rows": [work.row(job.key) for job in jobs],
    }
    write_text(path, json.dumps(result, indent=1, allow_nan=False) + "\n")
    draw(result, path)
    _clear(subject)
    return result


def _require_place(path: Path) -> None:
    """Said before anything is measured."""
    make_directory(path.parent)
    if path.is_dir():
        raise InfopruneError(f"--json: {path} is a directory; name a file")


def _measure(jobs: list[Job], work: WorkFile) -> None:
    with progress_bars() as bars:
        bar = bars.add_task("ablations", total=len(jobs))
        for job in jobs:
            bars.update(bar, description=job.title)
            row: Row = {**job.key, **job.measure()}
            work.append(job.key, row)
            bars.advance(bar)


def _clear(subject: Subject) -> None:
    """A finished run has nothing to go on with; the next one measures anew. Other files are let alone."""
    (subject.work / ROWS).unlink()
    _forget(subject)
    if not any(subject.work.iterdir()):
        subject.work.rmdir()


def _forget(subject: Subject) -> None:
    """Only the file of rows says by which options scores were learnt and pictures drawn: none outlives it."""
    for folder in (subject.learnt, subject.pictures):
        shutil.rmtree(folder, ignore_errors=True)
