"""Table 1 for people: in the terminal, and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from infoprune_rt.benchmarking.table1.goals import Row, speedup
from infoprune_rt.benchmarking.table1.methods import DENSE

HEADS = (
    "method", "execution", "engine", "parameters", "TFLOP", "TFLOP as YOPO counts", "tower ms", "prefill ms",
    "first token ms", "times as fast", "all tokens ms", "peak MiB", "accuracy",
)  # fmt: skip
_WORDS = 3  # columns that hold words
_IN_TERMINALS = ("TFLOP", "tower ms", "prefill ms", "first token ms", "times as fast", "accuracy")


def cells(row: Row, base: Row) -> list[str]:
    """One row as texts under ``HEADS``; no speed-up where an answer was wrong."""
    accuracy, peak = row["accuracy"], row["peak_bytes"]
    return [
        row["method"],
        row["execution"],
        row["engine"],
        f"{row['parameters'] / 1e6:.1f} M",
        f"{row['flops'] / 1e12:.3g}",
        f"{row['flops_yopo'] / 1e12:.3g}",
        f"{row['tower_p50_ms']:.0f}",
        f"{row['prefill_p50_ms']:.0f}",
        f"{row['first_token_p50_ms']:.0f}",
        _times_as_fast(row, base),
        f"{row['generate_p50_ms']:.0f}",
        "–" if peak is None else f"{peak / 2**20:.0f}",
        "–" if accuracy is None else f"{accuracy['overall']:.1f}",
    ]


def _times_as_fast(row: Row, base: Row) -> str:
    if not row["checked"]:
        counted = row["flops"] == row["flops_counted"]
        return "WRONG ANSWER" if counted else "WRONG COUNT of products"
    ratio = speedup(row, base)
    return "–" if ratio is None else f"{ratio:.2f}×"


def profile_table(operators: Sequence[dict[str, Any]]) -> str:
    """The operators that take most of a pass, as Markdown."""
    lines = [f"| {each['operator']} | {each['ms']:.0f} | {each['share']:.0%} |" for each in operators]
    return "\n".join(("| operator | ms | share |", "| --- | ---: | ---: |", *lines)) + "\n"


def by_workload(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each workload, by what it is called in a title."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        title = f"{row['workload']}: {row['patches']} patches, {row['tokens']} tokens in the prompt"
        found.setdefault(title, []).append(row)
    return found


def base_of(rows: Sequence[Row]) -> Row:
    """What speed-ups are against: the dense model as transformers runs it by default, on SDPA."""
    return next(row for row in rows if row["method"] == DENSE and row["engine"] == "sdpa")


def tables(result: dict[str, Any]) -> list[Table]:
    """A table per workload: what fits a terminal; the files say the rest."""
    made = []
    for title, rows in by_workload(result["rows"]).items():
        table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
        table.add_column("")
        for head in _IN_TERMINALS:
            table.add_column(head.removesuffix(" ms"), justify="right")
        for row in rows:
            found = dict(zip(HEADS, cells(row, base_of(rows)), strict=True))
            label = f"{found['method']}, {found['execution']}, {found['engine']}"
            table.add_row(label, *(found[head] for head in _IN_TERMINALS))
        made.append(table)
    return made


def printed_rows(result: dict[str, Any]) -> list[list[str]]:
    """The paper's own rows, under ``HEADS``, as far as it prints them."""
    blank = [""] * len(HEADS)
    made = []
    for printed in result["printed_in_the_paper"]:
        row = [f"{printed['method']} (printed in the paper)", "?", "A800", *blank[3:]]
        row[HEADS.index("TFLOP")] = f"{printed['flops'] / 1e12:.4g} (counting not stated)"
        row[HEADS.index("first token ms")] = f"{printed['latency_ms']:.0f} (what is timed is not stated)"
        made.append(row)
    return made


def markdown(result: dict[str, Any]) -> str:
    """All workloads, and the paper's rows beside them."""
    parts = []
    for title, rows in by_workload(result["rows"]).items():
        body = [cells(row, base_of(rows)) for row in rows] + printed_rows(result)
        parts.append(f"**{title}**\n\n{_markdown_table(body)}")
    return "\n\n".join(parts) + "\n"


def _markdown_table(body: Sequence[Sequence[str]]) -> str:
    rules = ["---" if i < _WORDS else "---:" for i in range(len(HEADS))]
    return "\n".join("| " + " | ".join(line) + " |" for line in (HEADS, rules, *body))
