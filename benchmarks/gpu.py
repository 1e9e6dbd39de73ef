"""``make gpu``: everything that needs a GPU, in one go; see ``infoprune_rt/benchmarking/gpu/session.py``.

Writes benchmarks/results/<device>/; what the steps print is in runs/gpu/. Exits with status 1 if a step failed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from infoprune_rt.benchmarking.cpu_tower.show import goals_table
from infoprune_rt.benchmarking.gpu.device import folder_name, require_gpu
from infoprune_rt.benchmarking.gpu.session import SECONDS, Session, all_steps
from infoprune_rt.benchmarking.gpu.show import notes, rows_table, steps_table
from infoprune_rt.errors import InfopruneError

ROOT = Path(__file__).resolve().parents[1]


def main() -> None:
    """Run all steps, then say what came of them."""
    try:
        device = require_gpu()
    except InfopruneError as error:
        raise SystemExit(str(error)) from None
    console = Console(width=160)
    logs = ROOT / "runs" / "gpu"
    session = Session(ROOT, ROOT / "benchmarks" / "results" / folder_name(device), logs, device)
    sound = session.run(all_steps(ROOT, device, logs), SECONDS, lambda line: console.print(line, markup=False))
    for name in ("gpu_operators", "gpu_tower"):
        if result := session.measured(name):
            show(result, name, console)
    console.print(steps_table(session.steps))
    raise SystemExit(int(not sound))


def show(result: dict[str, Any], name: str, console: Console) -> None:
    """A benchmark's rows, goals and gaps."""
    console.print(rows_table(name, result["rows"]))
    console.print(goals_table(result["goals"]))
    for line in notes(result):
        console.print(line, markup=False)


if __name__ == "__main__":
    main()
