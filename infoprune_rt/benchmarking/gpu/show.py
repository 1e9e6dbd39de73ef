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
    """What was left out, what failed and what was wrong, a line each; ours last, where it is seen."""
    left_out = [f"left out: {item['name']}: {item['why']}" for item in result["left_out"]]
    failures = [(item["ours"], f"FAILED: {_where(item)}: {item['error']}") for item in result["failures"]]
    wrong = [(row["ours"], f"WRONG: {_where(row)}") for row in result["rows"] if not row["checked"]]
    return left_out + [told for _, told in sorted(failures + wrong, key=lambda each: each[0])]


def _where(item: dict[str, Any]) -> str:
    """Of a row or a failure, in words."""
    sizes = [f"{name} {item[name]}" for name in _SIZES if name in item]
    return ", ".join([item["operator"], *sizes, item["name"]])


def steps_table(steps: Sequence[dict[str, Any]]) -> Table:
    """How each step of ``make gpu`` ended."""
    table = Table(title="make gpu", title_justify="left", box=SIMPLE_HEAD)
    for name in ("step", "", "s", "what"):
        table.add_column(name, justify="right" if name == "s" else "left")
    for step in steps:
        mark = step["status"].upper() if step["status"] == "failed" else step["status"]
        table.add_row(step["name"], mark, f"{step['seconds']:.0f}", step["told"])
    return table
