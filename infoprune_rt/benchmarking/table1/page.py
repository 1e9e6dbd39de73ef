"""Table 1 as one self-contained HTML page: bars of the stages, and latency against FLOPs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from importlib.resources import files
from itertools import groupby
from typing import Any

import matplotlib.pyplot as plt
from jinja2 import Environment, StrictUndefined, select_autoescape
from matplotlib.figure import Figure

from infoprune_rt.benchmarking.table1.charts import latency_against_flops, stage_bars
from infoprune_rt.benchmarking.table1.goals import Row
from infoprune_rt.benchmarking.table1.show import HEADS, base_of, by_workload, cells, printed_rows


def page(result: dict[str, Any]) -> str:
    """The whole page."""
    environment = Environment(autoescape=select_autoescape(default=True), undefined=StrictUndefined)
    source = files("infoprune_rt.benchmarking.table1").joinpath("page.html.jinja").read_text()
    workloads = [
        {
            "title": title,
            "body": [cells(row, base_of(rows)) for row in rows],
            "wrong": [not row["checked"] for row in rows],
            "bars": _embedded(stage_bars(rows)),
            "scatter": _embedded(latency_against_flops(rows)),
            "orders": _orders(rows),
        }
        for title, rows in by_workload(result["rows"]).items()
    ]
    return environment.from_string(source).render(
        result=result, heads=HEADS, workloads=workloads, printed=printed_rows(result)
    )


def _name(row: Row) -> str:
    return f"{row['method']} ({row['execution']}, {row['engine']})"


def _embedded(figure: Figure) -> str:
    kept = io.BytesIO()
    figure.savefig(kept, format="png")
    plt.close(figure)
    return base64.b64encode(kept.getvalue()).decode()


def _orders(rows: Sequence[Row]) -> list[dict[str, str]]:
    """The right rows by YOPO's FLOPs, by all FLOPs and by time, least first."""

    def order(key: str) -> str:
        right = sorted((row for row in rows if row["checked"]), key=lambda row: float(row[key]))
        groups = [list(group) for _, group in groupby(right, key=lambda row: float(row[key]))]
        return " < ".join(" = ".join(_name(row) for row in group) for group in groups)

    names = {"flops_yopo": "by YOPO's FLOPs", "flops": "by all FLOPs", "first_token_p50_ms": "by time"}
    return [{"name": told, "order": order(key)} for key, told in names.items()]
