"""The whole benchmark: every case, every contender, one result file with a picture beside it."""

from __future__ import annotations

import gc
import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infoprune_rt.benchmarking.cpu_tower.attention import OURS as ATTENTION
from infoprune_rt.benchmarking.cpu_tower.attention import attention_candidates, attention_case
from infoprune_rt.benchmarking.cpu_tower.cases import Case, Subject, cases, tower_flops
from infoprune_rt.benchmarking.cpu_tower.contenders import CONTENDERS, OURS, PLAIN, Contender, contenders
from infoprune_rt.benchmarking.cpu_tower.goals import goals
from infoprune_rt.benchmarking.cpu_tower.measuring import Candidate, Row, measure, relative_error
from infoprune_rt.benchmarking.cpu_tower.memory import peak_bytes, peak_case
from infoprune_rt.benchmarking.cpu_tower.peers import HOW_TO_GET, missing
from infoprune_rt.benchmarking.cpu_tower.plot import plot
from infoprune_rt.benchmarking.environment import command, environment
from infoprune_rt.errors import InfopruneError
from infoprune_rt.files import make_directory, write_text
from infoprune_rt.runtime.blocks import block_specs, dense_specs
from infoprune_rt.towers import adapter_by_name

PEERS = ("openvino", "onnxruntime", "onnx", "onnxscript")
Progress = Callable[[int, int], None]


@dataclass
class Measurements:
    """What has been measured, and which contenders could not be."""

    rows: list[Row] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether all that ran gave the right answer, and all ran."""
        return not self.failures and all(row["checked"] for row in self.rows)


def bench_tower(path: Path, *, quick: bool, rounds: int, progress: Progress) -> dict[str, Any]:
    """Measure, write ``path`` (JSON) and a picture of the same name, and return what is in the file.

    A contender that raises is recorded in ``failures`` and the rest goes on; the file is written at the end, whole,
    so that a run that was broken off leaves an earlier file as it was. progress: called with (cases done, all).
    """
    _require_place(path)
    began = datetime.now(UTC)
    threads = torch.get_num_threads()
    chosen = cases(quick, threads)
    found = Measurements()
    for i, case in enumerate(chosen):
        progress(i, len(chosen) + 1)
        _tower_case(case, quick, rounds, found)
    progress(len(chosen), len(chosen) + 1)
    _attention_alone(attention_case(threads), rounds, found)
    torch.set_num_threads(threads)
    _add_peaks(peak_case(threads), found)
    progress(len(chosen) + 1, len(chosen) + 1)
    result = {
        "date": began.isoformat(timespec="seconds"),
        "command": command(),
        "environment": environment(),
        "peers": {name: version(name) if not missing((name,)) else None for name in PEERS},
        "left_out": left_out(),
        "failures": found.failures,
        "sound": found.sound,
        "gemm_tflops": max((row["gemm_tflops"] for row in found.rows), default=None),
        "goals": [goal.to_dict() for goal in goals(found.rows)],
        "rows": found.rows,
    }
    write_text(path, json.dumps(result, indent=1) + "\n")
    plot(found.rows, path.with_suffix(".png"))
    return result


def _require_place(path: Path) -> None:
    """Said before anything is measured, not a quarter of an hour later."""
    make_directory(path.parent)
    if path.is_dir():
        raise InfopruneError(f"--json: {path} is a directory; name a file")


def left_out() -> list[dict[str, str]]:
    """The contenders whose modules are not installed, and how to get them."""
    return [
        {"name": c.name, "why": f"{', '.join(absent)} not installed; get it with: {HOW_TO_GET}"}
        for c in CONTENDERS
        if (absent := missing(c.needs))
    ]


def _tower_case(case: Case, quick: bool, rounds: int, found: Measurements) -> None:
    gc.collect()  # of the case before: gigabytes, at full depth
    torch.compiler.reset()
    torch.set_num_threads(case.threads)
    with tempfile.TemporaryDirectory(prefix="infoprune-bench-") as folder:
        subject = Subject(case, Path(folder))
        present = [c for c in contenders(case, quick) if not missing(c.needs)]
        candidates = _candidates(subject, present, found)
        with torch.inference_mode():
            found.rows += measure(candidates, case, rounds)


def _candidates(subject: Subject, present: list[Contender], found: Measurements) -> list[Candidate]:
    """Those that could be built and have answered once."""
    exact: dict[str, Tensor] = {}
    flops: dict[str, int] = {}
    ready = []
    for c in present:
        with _recorded(c.name, subject.case, found):
            if c.of not in exact:
                exact[c.of], flops[c.of] = _float32(subject, c.of)
            run = c.build(subject)
            with torch.inference_mode():
                error = relative_error(run(), exact[c.of])
            ready.append(Candidate(c.name, run, error, flops[c.of], c.dtype))
    return ready


@contextmanager
def _recorded(name: str, case: Case, found: Measurements) -> Iterator[None]:
    """Whatever another engine may raise: the rest shall be measured all the same."""
    try:
        yield
    except Exception as error:
        where = {"patches": case.patches, "images": len(case.grids), "blocks": case.blocks, "threads": case.threads}
        told = " ".join(f"{type(error).__name__}: {error}".split())
        found.failures.append({"name": name, **where, "error": told})


def _float32(subject: Subject, kind: str) -> tuple[Tensor, int]:
    """What one of the two towers answers in float32, and its FLOPs."""
    tower: Any = subject.compact if kind == "compact" else subject.dense
    shape = adapter_by_name("qwen2_vl").shape(tower.config)
    specs = block_specs(tower.config.blocks, shape) if kind == "compact" else dense_specs(shape)
    with torch.inference_mode():
        exact: Tensor = tower(subject.pixels, subject.grid).pooler_output
    return exact, tower_flops(specs, tower.config, subject.case.lengths)


def _attention_alone(case: Case, rounds: int, found: Measurements) -> None:
    torch.set_num_threads(case.threads)
    with _recorded(ATTENTION, case, found), torch.inference_mode():
        found.rows += measure(attention_candidates(case), case, rounds)


def _add_peaks(case: Case, found: Measurements) -> None:
    where = (case.patches, case.blocks, case.threads)
    for row in found.rows:
        if row["name"] in (PLAIN, OURS) and (row["patches"], row["blocks"], row["threads"]) == where:
            with _recorded(row["name"], case, found):
                row["peak_bytes"] = peak_bytes(row["name"], case)
