"""Where the time of a pass goes: the operators that take most of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from infoprune_rt.benchmarking.table1.measuring import Step, prepare
from infoprune_rt.benchmarking.table1.methods import DENSE, YOPO, Method
from infoprune_rt.benchmarking.table1.subject import Subject
from infoprune_rt.benchmarking.table1.workloads import Workload

_SHOWN = 8


def profiles(subject: Subject, rows: Sequence[Method], work: Workload, step: Step) -> dict[str, list[dict[str, Any]]]:
    """Of the dense model and YOPO as released, which differ in masks alone: ms and share of their own operators."""
    inputs, _ = prepare(subject, work)
    found = {}
    for method in rows:
        if method.tower == "dense" and method.name in (DENSE, YOPO) and method.yopo != "compact":
            step(f"{work.name}: {method.key}: profile")
            with subject.standing(method), torch.inference_mode():
                found[method.key] = _profile(lambda: subject.model(**inputs, logits_to_keep=1), subject.model.device)
    return found


def _profile(run: Any, device: torch.device) -> list[dict[str, Any]]:
    gpu = device.type == "cuda"
    with _silent(), profile(activities=[ProfilerActivity.CUDA if gpu else ProfilerActivity.CPU]) as seen:
        run()
    key = "self_device_time_total" if gpu else "self_cpu_time_total"
    spent = {event.key: getattr(event, key) / 1000 for event in seen.key_averages()}
    total = sum(spent.values())
    longest = sorted(spent, key=spent.__getitem__, reverse=True)[:_SHOWN]
    return [{"operator": name, "ms": round(spent[name], 2), "share": round(spent[name] / total, 4)} for name in longest]


@contextmanager
def _silent() -> Iterator[None]:
    """The profiler writes notes of its own to standard error, past Python."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
