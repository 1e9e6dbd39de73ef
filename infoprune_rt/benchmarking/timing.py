"""Interleaved wall-clock timing: what is compared runs in turns, so that a noisy moment hits all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

import numpy as np

# Seconds before each run, in which the last one's threads stop waiting for more work: after 0.02 those of ONNX Runtime
# still spin, and cost what follows a third of its speed.
REST = 0.2


def interleaved(runs: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 1) -> dict[str, list[float]]:
    """Milliseconds of every repeat of every run; each round calls all of them once."""
    for _ in range(warmup):
        for run in runs.values():
            run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            time.sleep(REST)
            began = time.perf_counter()
            run()
            times[name].append(1000 * (time.perf_counter() - began))
    return times


def percentiles(times: list[float]) -> dict[str, float]:
    """Median and 90th percentile in ms."""
    return {"p50": float(np.percentile(times, 50)), "p90": float(np.percentile(times, 90))}
