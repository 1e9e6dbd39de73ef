"""Results as short tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from infoprune_rt.benchmarking.gpu.measuring import Row

_SIZES = ("patches", "images", "heads", "rank")


def rows_table(title: str, rows: Sequence[Row]) -> Table:
    """A line per contender; times only where the answer was right. floor: the share of it."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for name in ("", "", "p50 µs", "p90 µs", "TFLOP/s", "floor", "extra MiB", "error"):
        table.add_column(name, justify="left" if name == "" else "right")
    for row in rows:
        sizes = ", ".join(f"{name} {row[name]}" for name in _SIZES if name in row)
        error, extra = row["max_error"], row.get("extra_bytes")
        table.add_row(
            f"{row['operator']}, {sizes}",
            row["name"],
            _number(row["p50_us"], ".1f"),
            _number(row["p90_us"], ".1f"),
            _number(row["tflops"], ".1f"),
            _number(row["share_of_floor"], ".0%"),
            _number(None if extra is None else extra / 2**20, ".1f"),
            ("no answer" if error is None else f"{error:.1e}") + ("" if row["checked"] else " WRONG"),
        )
    return table


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)


def notes(result: dict[str, Any]) -> list[str]:
    """Failures and what was left out, a line each."""
    failures = [f"FAILED: {_where(item)}: {item['error']}" for item in result["failures"]]
    return failures + [f"left out: {item['name']}: {item['why']}" for item in result["left_out"]]


def _where(failure: dict[str, Any]) -> str:
    sizes = [f"{name} {failure[name]}" for name in _SIZES if name in failure]
    return ", ".join([failure["operator"], *sizes, failure["name"]])


def steps_table(steps: Sequence[dict[str, Any]]) -> Table:
    """How each step of ``make gpu`` ended."""
    table = Table(title="make gpu", title_justify="left", box=SIMPLE_HEAD)
    for name in ("step", "", "s", "what"):
        table.add_column(name, justify="right" if name == "s" else "left")
    for step in steps:
        mark = step["status"].upper() if step["status"] == "failed" else step["status"]
        table.add_row(step["name"], mark, f"{step['seconds']:.0f}", step["told"])
    return table
