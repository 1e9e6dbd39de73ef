"""``infoprune doctor``."""

from __future__ import annotations

from rich.table import Table

from infoprune_rt.cli.options import JsonOption
from infoprune_rt.cli.output import console, print_json


def doctor(as_json: JsonOption = False) -> None:
    """Show versions, instruction sets, and which backends serve on this machine."""
    from infoprune_rt.benchmarking.environment import environment

    found = environment()
    if as_json:
        print_json(found)
        return
    table = Table(title="infoprune doctor", show_header=False)
    for key, value in found.items():
        if isinstance(value, dict):
            value = ", ".join(f"{name} {text}" if text else f"{name} not installed" for name, text in value.items())
        elif isinstance(value, list):
            value = ", ".join(map(str, value)) or "none"
        table.add_row(key.replace("_", " "), str(value))
    console.print(table)
