"""The whole 7B tower, 32 blocks, on the GPU that is here: ours against torch.compile and transformers' dense tower.

Writes benchmarks/results/<device>/gpu_tower.json; exits with status 1 if a tower of ours is wrong or fails.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from infoprune_rt.benchmarking.cpu_tower.show import goals_table
from infoprune_rt.benchmarking.gpu.device import folder_name, require_gpu
from infoprune_rt.benchmarking.gpu.run_towers import bench_towers
from infoprune_rt.benchmarking.gpu.show import notes, rows_table
from infoprune_rt.benchmarking.gpu.towers import cases
from infoprune_rt.errors import InfopruneError


def main(
    seconds: Annotated[float, typer.Option(help="What does not fit in this time is left out, and named.")] = 600,
    out: Annotated[Path | None, typer.Option("--json", help="Another result file.")] = None,
) -> None:
    """Measure half the heads and FFNs of rank 128 on one image, a larger one and sixteen mixed ones."""
    try:
        device = require_gpu()
        path = out or Path(__file__).parent / "results" / folder_name(device) / "gpu_tower.json"
        result = bench_towers(path, device, seconds, cases())
    except InfopruneError as error:
        raise SystemExit(str(error)) from None
    console = Console(width=160)
    console.print(rows_table("tower", result["rows"]))
    console.print(goals_table(result["goals"]))
    for line in notes(result):
        console.print(line, markup=False)
    raise SystemExit(int(not result["sound"]))


if __name__ == "__main__":
    typer.run(main)
