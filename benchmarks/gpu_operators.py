"""The Triton kernels against PyTorch's best on the GPU that is here, operator by operator.

Writes benchmarks/results/<device>/gpu_operators.json; exits with status 1 if a kernel of ours is wrong or fails.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from infoprune_rt.benchmarking.cpu_tower.show import goals_table
from infoprune_rt.benchmarking.gpu.device import folder_name, require_gpu
from infoprune_rt.benchmarking.gpu.operators import questions
from infoprune_rt.benchmarking.gpu.run_operators import bench_operators
from infoprune_rt.benchmarking.gpu.show import notes, rows_table
from infoprune_rt.errors import InfopruneError


def main(
    seconds: Annotated[float, typer.Option(help="What does not fit in this time is left out, and named.")] = 300,
    out: Annotated[Path | None, typer.Option("--json", help="Another result file.")] = None,
) -> None:
    """Measure attention, the low-rank FFN and the projections."""
    try:
        device = require_gpu()
        path = out or Path(__file__).parent / "results" / folder_name(device) / "gpu_operators.json"
        result = bench_operators(path, device, seconds, questions())
    except InfopruneError as error:
        raise SystemExit(str(error)) from None
    console = Console(width=160)
    console.print(rows_table("operators", result["rows"]))
    console.print(goals_table(result["goals"]))
    for line in notes(result):
        console.print(line, markup=False)
    raise SystemExit(int(not result["sound"]))


if __name__ == "__main__":
    typer.run(main)
