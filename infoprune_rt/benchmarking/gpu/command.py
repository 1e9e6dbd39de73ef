"""What the GPU benchmarks' scripts share: where the result goes, how it is shown, and the exit status."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch
from rich.console import Console

from infoprune_rt.benchmarking.cpu_tower.show import goals_table
from infoprune_rt.benchmarking.gpu.device import folder_name, require_gpu
from infoprune_rt.benchmarking.gpu.show import notes, rows_table
from infoprune_rt.errors import InfopruneError


def measure_and_show(
    title: str, file: str, results: Path, out: Path | None, measure: Callable[[Path, torch.device], dict[str, Any]]
) -> NoReturn:
    """Run a benchmark on the GPU that is here; exits with 1 if something of ours is wrong, with a sentence without one.

    measure: writes its result to a path and returns it. out: that path; None for ``results``/<device>/<file>.
    """
    try:
        device = require_gpu()
        result = measure(out or results / folder_name(device) / file, device)
    except InfopruneError as error:
        raise SystemExit(str(error)) from None
    console = Console(width=160)
    console.print(rows_table(title, result["rows"]))
    console.print(goals_table(result["goals"]))
    for line in notes(result):
        console.print(line, markup=False)
    raise SystemExit(int(not result["sound"]))
