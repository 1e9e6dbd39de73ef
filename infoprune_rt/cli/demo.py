"""``infoprune demo``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from infoprune_rt.cli.options import JsonOption
from infoprune_rt.cli.output import print_json


def demo(
    out: Annotated[Path, typer.Option(help="Where report.json, report.html and the checkpoints go.")] = Path(
        "demo-out"
    ),
    as_json: JsonOption = False,
) -> None:
    """Prune the shipped tiny VLM and a full-size tower, and report what was lost and gained (about 4 minutes)."""
    from infoprune_rt.demo.run import run_demo

    report = run_demo(out, quiet=as_json)
    if as_json:
        print_json(report)
