"""The whole 7B tower, 32 blocks, on the GPU that is here: ours against torch.compile and transformers' dense tower.

Writes benchmarks/results/<device>/gpu_tower.json; exits with status 1 if a tower of ours is wrong or fails.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer

from infoprune_rt.benchmarking.gpu.command import measure_and_show
from infoprune_rt.benchmarking.gpu.run_towers import bench_towers
from infoprune_rt.benchmarking.gpu.towers import cases

RESULTS = Path(__file__).parent / "results"


def main(
    seconds: Annotated[float, typer.Option(help="What does not fit in this time is left out, and named.")] = 600,
    out: Annotated[Path | None, typer.Option("--json", help="Another result file.")] = None,
) -> None:
    """Measure half the heads and FFNs of rank 128 on one image, a larger one and sixteen mixed ones."""

    def measure(path: Path, device: torch.device) -> dict[str, Any]:
        return bench_towers(path, device, seconds, cases())

    measure_and_show("tower", "gpu_tower.json", RESULTS, out, measure)


if __name__ == "__main__":
    typer.run(main)
