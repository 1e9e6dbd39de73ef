"""Peak memory above the weights, each way to run a tower in a process of its own: no one inherits another's heap."""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch

from infoprune_rt.benchmarking.cpu_tower.cases import Case, Subject
from infoprune_rt.benchmarking.cpu_tower.contenders import CONTENDERS

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_case(threads: int) -> Case:
    """Whose peak is measured: one image of 4096 patches, on all threads."""
    return Case(((64, 64),), threads)


def peak_bytes(name: str, case: Case) -> int | None:
    """Bytes by which resident memory peaks in the named contender's first pass of this case (Linux; None elsewhere).

    Weights count as weights, packed copies of them too: a pass over a very small image comes before.
    """
    if not can_measure():
        return None
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        return process.submit(_measure, name, case).result()


def _measure(name: str, case: Case) -> int:
    torch.set_num_threads(case.threads)
    build = next(contender.build for contender in CONTENDERS if contender.name == name)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        subject = Subject(Case(((4, 4),), case.threads, case.blocks), Path(folder))
        run = build(subject)
        run()
        subject.pixels, subject.grid = case.inputs()
        return growth(run)


def can_measure() -> bool:
    """Whether this system tells how far resident memory has peaked, and lets it begin anew (Linux)."""
    return _RESET.exists()


def growth(run: Callable[[], object]) -> int:
    """Bytes by which resident memory peaks above what it is now while ``run`` runs (Linux)."""
    _return_free_memory()
    _RESET.write_text("5")  # the peak starts anew from what is resident now
    before = _resident("VmRSS")
    run()
    return max(_resident("VmHWM") - before, 0)


def _return_free_memory() -> None:
    """Memory that the allocator keeps for later would hide a part of the peak."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _resident(field: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024
