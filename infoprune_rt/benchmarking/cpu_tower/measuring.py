"""Time what has been checked, in turns, the machine's own GEMM rate among it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from infoprune_rt.benchmarking.cpu_tower.cases import DTYPE, Case
from infoprune_rt.benchmarking.timing import interleaved, percentiles

Row = dict[str, Any]
GEMM_SIZE = 2048
# Largest admitted difference from float32, relative to its largest value. Guards against a wrong answer; how close the
# kernels come to PyTorch's own rounding is the tests' business.
TOLERANCES = {"float32": 1e-4, "bfloat16": 0.03, "int8": 0.06}


@dataclass(frozen=True)
class Candidate:
    """Something to time. error: of its answer, by ``relative_error``. flops: of one run."""

    name: str
    run: Callable[[], Tensor]
    error: float | None
    flops: float
    dtype: str


def relative_error(output: Tensor, exact: Tensor) -> float | None:
    """Largest difference over the largest exact value; None where the output has another shape or is not finite."""
    if output.shape != exact.shape or not output.isfinite().all():
        return None
    return float((output.float() - exact).abs().max() / exact.abs().max())


def measure(candidates: Sequence[Candidate], case: Case, rounds: int) -> list[Row]:
    """One row per candidate. All of them have run once before, for the check."""
    gemm = _gemm()
    gemm()
    times = interleaved({**{c.name: c.run for c in candidates}, "gemm": gemm}, rounds, warmup=0)
    flop_rate = 2 * GEMM_SIZE**3 / (percentiles(times["gemm"])["p50"] / 1000)
    return [_row(c, case, times[c.name], flop_rate) for c in candidates]


def _gemm() -> Callable[[], Tensor]:
    """torch's own product of two GEMM_SIZE x GEMM_SIZE matrices in bfloat16: what this machine can do."""
    a, b = (torch.randn(GEMM_SIZE, GEMM_SIZE).to(DTYPE) for _ in range(2))
    return lambda: a @ b


def _row(candidate: Candidate, case: Case, times: list[float], flop_rate: float) -> Row:
    taken, error = percentiles(times), candidate.error
    return {
        "name": candidate.name,
        "patches": case.patches,
        "images": len(case.grids),
        "blocks": case.blocks,
        "threads": case.threads,
        "dtype": candidate.dtype,
        "p50_ms": taken["p50"],
        "p90_ms": taken["p90"],
        "rounds": len(times),
        "max_error": error,
        "checked": error is not None and error <= TOLERANCES[candidate.dtype],
        "peak_bytes": None,  # measured apart, in a process of its own
        "gemm_tflops": flop_rate / 1e12,
        "share_of_gemm_rate": candidate.flops / (taken["p50"] / 1000) / flop_rate,
    }
