"""The Qwen2-VL-7B tower, 32 blocks, compacted to half the heads and rank 128, against transformers' dense one.

Writes benchmarks/results/<machine>/fullsize_tower.json.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console

from infoprune_rt.benchmarking.environment import command, environment, machine_name
from infoprune_rt.benchmarking.targets import Target
from infoprune_rt.demo.fullsize import measure
from infoprune_rt.files import write_text


def main(
    repeats: Annotated[int, typer.Option(help="Timed rounds of each.")] = 5,
    dtypes: Annotated[str, typer.Option(help="Comma-separated.")] = "float32,bfloat16",
    out: Annotated[Path | None, typer.Option("--json", help="Another result file.")] = None,
) -> None:
    """Time dense against compact on a photograph, interleaved; exits with status 1 if a target is missed."""
    rows = [measure(getattr(torch, name), repeats, kernels=True) for name in dtypes.split(",")]
    head = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "command": command(), "environment": environment()}
    targets = [
        Target(f"{row['dtype']}: times faster than dense, plain PyTorch", row["speedup"], at_least=4.0) for row in rows
    ]
    targets += [
        Target(f"{row['dtype']}: times faster than dense, C++ kernels", row["dense_ms"] / row["csrc_ms"], at_least=4.0)
        for row in rows
    ]
    targets += [
        Target("compaction, seconds", max(row["compaction_seconds"] for row in rows), at_most=600),
        Target("peak memory, GiB", max(row["peak_memory_gib"] for row in rows), at_most=8),
    ]
    path = out or Path(__file__).parent / "results" / machine_name() / "fullsize_tower.json"
    write_text(path, json.dumps({**head, "targets": [t.to_dict() for t in targets], "rows": rows}, indent=1) + "\n")
    for target in targets:
        Console().print(str(target))
    raise typer.Exit(int(not all(target.met for target in targets)))


if __name__ == "__main__":
    typer.run(main)
