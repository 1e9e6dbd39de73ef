"""The Triton kernels against PyTorch's best on the GPU that is here, operator by operator.

Writes benchmarks/results/<device>/gpu_operators.json; exits with status 1 if a kernel of ours is wrong or fails.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from infoprune_rt.benchmarking.gpu.command import measure_and_show
from infoprune_rt.benchmarking.gpu.operators import questions
from infoprune_rt.benchmarking.gpu.run_operators import bench_operators

RESULTS = Path(__file__).parent / "results"


def main(
    seconds: Annotated[float, typer.Option(help="What does not fit in this time is left out, and named.")] = 300,
    out: Annotated[Path | None, typer.Option("--json", help="Another result file.")] = None,
) -> None:
    """Measure attention, the low-rank FFN and the projections."""

    def measure(path: Path, device: torch.device) -> dict[str, Any]:
        return bench_operators(path, device, seconds, questions())

    measure_and_show("operators", "gpu_operators.json", RESULTS, out, measure)


if __name__ == "__main__":
    typer.run(main)
