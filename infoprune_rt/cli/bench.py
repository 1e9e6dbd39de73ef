"""``infoprune bench``: the measurements that need no checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infoprune_rt.cli.bench_table1 import table1
from infoprune_rt.cli.output import block_progress, console, say

bench = typer.Typer(help="Measure this machine: the published figures, made again.", no_args_is_help=True)


bench.command()(table1)


@bench.command()
def tower(
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Under 3 minutes on 2 cores: 4 blocks and all threads only; beyond 1024 patches without "
            "transformers' dense tower and ONNX Runtime, on the pack of images without any peer.",
        ),
    ] = False,
    rounds: Annotated[int | None, typer.Option(min=1, help="Timed rounds of each; default 5, with --quick 3.")] = None,
    out: Annotated[Path, typer.Option("--json", help="The result file; its picture lies beside it.")] = Path(
        "runs/cpu_tower.json"
    ),
) -> None:
    """The compact 7B tower on this CPU: our kernels, PyTorch, torch.compile, OpenVINO, ONNX Runtime, transformers.

    All on the same weights and input, in turns, each checked against float32 first. Exits with status 1 if an answer is
    wrong or a contender fails.
    """
    from infoprune_rt.benchmarking.cpu_tower.run import bench_tower
    from infoprune_rt.benchmarking.cpu_tower.show import by_case, case_table, case_title, goals_table

    with block_progress("measuring") as progress:
        result = bench_tower(out, quick=quick, rounds=rounds or (3 if quick else 5), progress=progress)
    for title, rows in by_case(result["rows"]).items():
        console.print(case_table(title, rows))
    console.print(goals_table(result["goals"]))
    for item in result["left_out"]:
        say(f"left out: {item['name']}: {item['why']}")
    for item in result["failures"]:
        say(f"FAILED: {item['name']} ({case_title(item)}): {item['error']}")
    say(f"written to {out}")
    raise typer.Exit(int(not result["sound"]))
