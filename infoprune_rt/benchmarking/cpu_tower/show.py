"""A result's rows and goals as tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from infoprune_rt.benchmarking.cpu_tower.measuring import Row


def case_title(row: Row) -> str:
    """What a row (or a failure) is about, in words."""
    parts = [f"{row['patches']} patches", _count(row["images"], "image")]
    if row["blocks"]:
        parts.append(_count(row["blocks"], "block"))
    return ", ".join([*parts, _count(row["threads"], "thread")])


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def by_case(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of every case, by its title."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(case_title(row), []).append(row)
    return found


def case_table(title: str, rows: Sequence[Row]) -> Table:
    """One case's rows; a blank where something was not measured. GEMM: the share of its rate; MiB: peak memory."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for name in ("", "dtype", "p50 ms", "p90 ms", "GEMM", "error", "MiB"):
        table.add_column(name, justify="left" if name in ("", "dtype") else "right")
    for row in rows:
        error, peak = row["max_error"], row["peak_bytes"]
        table.add_row(
            row["name"],
            row["dtype"],
            f"{row['p50_ms']:.1f}",
            f"{row['p90_ms']:.1f}",
            f"{row['share_of_gemm_rate']:.0%}",
            ("no answer" if error is None else f"{error:.1e}") + ("" if row["checked"] else " WRONG"),
            "" if peak is None else f"{peak / 2**20:.0f}",
        )
    return table


def goals_table(goals: Sequence[dict[str, Any]]) -> Table:
    """What was to be reached, and what was."""
    table = Table(title="goals", title_justify="left", box=SIMPLE_HEAD)
    for name in ("", "goal", "aim", "reached", ""):
        table.add_column(name, justify="left" if name == "" else "right")
    for goal in goals:
        table.add_row(*goal_cells(goal), "met" if goal["met"] else "MISSED")
    return table


def goal_cells(goal: dict[str, Any]) -> list[str]:
    """Name, bound, aim and what was reached, as texts."""
    low, high = goal["at_least"], goal["at_most"]
    bound = f"≥ {low:g}" if low is not None else f"≤ {high:g}"
    aim = "" if goal["aim"] is None else f"{goal['aim']:g}"
    return [goal["name"], bound, aim, f"{goal['reached']:.2f}"]
