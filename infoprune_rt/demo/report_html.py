"""The demo's report as one HTML file that loads nothing from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, UndefinedError

from infoprune_rt.demo import report_block_charts, report_charts
from infoprune_rt.demo.report_numbers import duration, figures, percent, plain, points, relative, runs, scientific, si
from infoprune_rt.demo.report_overview import overview_figure
from infoprune_rt.errors import InfopruneError
from infoprune_rt.files import write_text

__all__ = ["overview_figure", "write_report_html"]

HIGHLIGHTED = "both"
LEGEND = (
    ("dense", "dense"),
    ("ours", "ours"),
    ("paper", "the paper's recipe"),
    ("control", "random control"),
)


class Tile(NamedTuple):
    """A headline figure."""

    value: str
    name: str
    note: str


class Row(NamedTuple):
    """A variant in the table; ``cells`` are pairs of a figure and the small print under it."""

    label: str
    origin: str
    highlighted: bool
    cells: list[tuple[str, str]]
    heads: str
    ffns: str


def write_report_html(report: dict[str, Any], path: Path) -> None:
    """Write the demo's ``report.json`` (its parsed content) as a self-contained page.

    Raises:
        InfopruneError: the report lacks a field, or holds a number that is not finite.
    """
    for where, value in _numbers(report, "report"):
        if not math.isfinite(value):
            raise InfopruneError(f"{where} is {value}; run the demo again, a report holds finite numbers only")
    try:
        page = _environment().get_template("report.html.jinja").render(_context(report))
    except (KeyError, UndefinedError) as error:
        raise InfopruneError(f"the report lacks a field ({error}); run the demo again to write it anew") from error
    write_text(path, page)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("infoprune_rt.demo", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    filters: dict[str, Callable[..., str]] = {
        "px": lambda pixels: f"{pixels:.1f}",
        "words": lambda name: name.replace("_", " "),
        "plain": plain,
        "figures": figures,
        "duration": duration,
        "scientific": scientific,
    }
    environment.filters.update(filters)
    return environment


def _context(report: dict[str, Any]) -> dict[str, Any]:
    return {
        "report": report,
        "tiles": _tiles(report),
        "families": list(report["dense"]["accuracy"]),
        "rows": [_row(variant, report["dense"]) for variant in report["variants"]],
        "legend": LEGEND,
        "ffn_sizes": runs(["dense" if size is None else str(size) for size in report["ranks_per_block"]]),
        "standard_error": _standard_error(report["dense"]["accuracy"]["overall"], report["settings"]["questions"]),
        "fullsize_rows": _fullsize_rows(report["fullsize"]),
        "area": report_charts.AREA,
        "width": report_charts.WIDTH,
        "latency_area": report_charts.LATENCY_AREA,
        "bar_height": report_charts.BAR_HEIGHT,
        "scatter": report_charts.scatter(report),
        "spectra": report_block_charts.spectra(report["taylor"]),
        "head_bars": report_block_charts.head_bars(report["heads_per_block"], report["model"]["num_heads"]),
        "zeta_map": report_block_charts.zeta_map(report["zeta"], report["heads_per_block"]),
        "latency": report_charts.latency(report["fullsize"]),
    }


def _tiles(report: dict[str, Any]) -> list[Tile]:
    dense, compact, fullsize = report["dense"], report["compact"], report["fullsize"]
    before, after = dense["accuracy"]["overall"], compact["accuracy"]["overall"]
    return [
        Tile(
            percent(relative(compact["parameters"], dense["parameters"])),
            "tower parameters",
            f"tiny VLM: {si(dense['parameters'])} → {si(compact['parameters'])}",
        ),
        Tile(points(after - before), "points of accuracy", f"tiny VLM: {before:.1f} % → {after:.1f} %"),
        Tile(
            f"{figures(fullsize['speedup'])}×",
            "as fast",
            f"full-size tower: {duration(fullsize['dense_ms'])} → {duration(fullsize['compact_ms'])}",
        ),
    ]


def _row(variant: dict[str, Any], dense: dict[str, Any]) -> Row:
    is_dense = variant["name"] == "dense"
    cells = []
    for family, base in dense["accuracy"].items():
        value = variant["accuracy"][family]
        cells.append((f"{value:.1f}", "" if is_dense else points(value - base)))
    for key in ("parameters", "flops"):
        cells.append((si(variant[key]), "" if is_dense else percent(relative(variant[key], dense[key]))))
    cells.append(_latency_cell(variant["latency_ms"], None if is_dense else dense["latency_ms"]))
    return Row(
        variant["label"],
        report_charts.origin(variant["name"]),
        variant["name"] == HIGHLIGHTED,
        cells,
        runs([str(heads) for heads in variant["heads_per_block"]]),
        runs([_ffn(**ffn) for ffn in variant["ffn_per_block"]]),
    )


def _ffn(kind: str, size: int | None) -> str:
    return kind if size is None else f"{kind} {size}"


def _latency_cell(latency: dict[str, float], dense: dict[str, float] | None) -> tuple[str, str]:
    change = f", {percent(relative(latency['p50'], dense['p50']))}" if dense else ""
    return duration(latency["p50"]), f"{duration(latency['p90'])}{change}"


def _fullsize_rows(fullsize: dict[str, Any]) -> list[tuple[str, str, str, str]]:
    heads = fullsize["blocks"] * fullsize["num_heads"], sum(fullsize["heads_per_block"])
    rows = [("heads", str(heads[0]), str(heads[1]), percent(relative(heads[1], heads[0])))]
    for name, key, written in (("parameters", "parameters", si), ("FLOPs", "flops", si), ("latency", "ms", duration)):
        dense, compact = fullsize[f"dense_{key}"], fullsize[f"compact_{key}"]
        rows.append((name, written(dense), written(compact), percent(relative(compact, dense))))
    return rows


def _standard_error(percent_right: float, questions: int) -> float:
    """Of a percentage of right answers, in points, taking the questions as independent."""
    share = percent_right / 100
    return 100 * math.sqrt(max(share * (1 - share), 0.0) / questions)


def _numbers(value: Any, where: str) -> Iterator[tuple[str, float]]:
    """Every float in nested JSON data, with its place."""
    if isinstance(value, float):
        yield where, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _numbers(item, f"{where}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _numbers(item, f"{where}[{index}]")
