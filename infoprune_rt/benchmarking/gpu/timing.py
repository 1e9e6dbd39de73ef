"""Times on a GPU by CUDA events: what is compared runs in turns, each contender over several inputs.

On the CPU a wall clock stands in, so that the code around it can be tested.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Run = Callable[[], Any]  # a tensor, or several
REPLAY_MS = 1.0  # of one graph, beside which the few microseconds of its launch are nothing


@dataclass(frozen=True)
class Timed:
    """What is timed of one contender: ``runs`` in rotation, each of which makes ``calls`` calls.

    alone: each run begins on an idle device, so that what the host adds is in its time; else it queues behind others.
    """

    runs: Sequence[Callable[[], object]]
    calls: int = 1
    alone: bool = True


def replayed(runs: Sequence[Run], device: torch.device) -> Timed:
    """Many calls in one CUDA graph, over all inputs in rotation; all of them have been called before."""
    if device.type != "cuda":
        return Timed([lambda: [run() for run in runs]], len(runs), alone=False)
    with torch.cuda.device(device):
        short = _graph(runs, 1)
        taken = min(times_in_turns({"": Timed([short.replay])}, device, 3)[""])
        repeats = math.ceil(REPLAY_MS / taken) if taken < REPLAY_MS else 1
        graph = short if repeats == 1 else _graph(runs, repeats)
    return Timed([graph.replay], repeats * len(runs), alone=False)


def _graph(runs: Sequence[Run], repeats: int) -> torch.cuda.CUDAGraph:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what libraries set up at a stream's first call must not be captured
        for run in runs:
            run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(repeats):
            for run in runs:
                run()
    return graph


def times_in_turns(contenders: Mapping[str, Timed], device: torch.device, rounds: int) -> dict[str, list[float]]:
    """Milliseconds per call of every contender in every round, after a round for warmth."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    measure = _gpu_round if device.type == "cuda" else _cpu_round
    for i in range(-1, rounds):
        for name, ms in measure(contenders, i).items():
            if i >= 0:
                times[name].append(ms / contenders[name].calls)
    return times


def _gpu_round(contenders: Mapping[str, Timed], i: int) -> dict[str, float]:
    marks = {}
    for name, timed in contenders.items():
        begin, end = _event(), _event()
        if timed.alone:
            torch.cuda.synchronize()
        begin.record()
        timed.runs[i % len(timed.runs)]()
        end.record()
        marks[name] = begin, end
    torch.cuda.synchronize()
    return {name: begin.elapsed_time(end) for name, (begin, end) in marks.items()}


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


def _cpu_round(contenders: Mapping[str, Timed], i: int) -> dict[str, float]:
    times = {}
    for name, timed in contenders.items():
        began = time.perf_counter()
        timed.runs[i % len(timed.runs)]()
        times[name] = 1000 * (time.perf_counter() - began)
    return times
