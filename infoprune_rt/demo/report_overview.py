"""The README's picture of the demo: accuracy against compression, and the full-size tower's latency."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from infoprune_rt.demo.report_charts import origin, removed_and_accuracy
from infoprune_rt.demo.report_geometry import Box, place_labels, round_range, shorten
from infoprune_rt.demo.report_numbers import duration, figures
from infoprune_rt.files import write_file

DPI, SIZE = 100, (10.0, 4.2)
FONT_POINTS = 10.0
COLOURS = {"dense": "#1d2329", "ours": "#0067a8", "paper": "#c25400", "control": "#8a4a80"}
MARKERS = {"dense": "o", "ours": "s", "paper": "D", "control": "^"}
SOFT, LINE = "#59636e", "#dfe3e6"


def overview_figure(report: dict[str, Any], path_png: Path) -> None:
    """Write a PNG of 1000 x 420 pixels from the demo's ``report.json`` (its parsed content)."""
    figure = Figure(figsize=SIZE, dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    _scatter(figure.add_axes((0.065, 0.14, 0.53, 0.75)), report)
    _latency(figure.add_axes((0.70, 0.14, 0.28, 0.75)), report["fullsize"])
    write_file(path_png, lambda aside: figure.savefig(aside, format="png", dpi=DPI))


def _scatter(axes: Axes, report: dict[str, Any]) -> None:
    places = removed_and_accuracy(report)
    low, high = round_range([accuracy for _, accuracy in places], 10.0)
    axes.set_ylim(low - 0.04 * (high - low), high + 0.2 * (high - low))  # room for names above the best points
    axes.yaxis.set_major_locator(FixedLocator([tick for tick in axes.get_yticks() if tick <= 100]))
    low, high = round_range([0.0, *(removed for removed, _ in places)], 10.0)
    axes.set_xlim(low - 0.03 * (high - low), high + 0.03 * (high - low))
    for (removed, accuracy), variant in zip(places, report["variants"], strict=True):
        kind = origin(variant["name"])
        axes.plot(removed, accuracy, MARKERS[kind], color=COLOURS[kind], markersize=9, markeredgecolor="white")
    _name_points(axes, places, [shorten(variant["label"]) for variant in report["variants"]])
    axes.set_xlabel("tower parameters removed (%)", color=SOFT)
    axes.set_ylabel("answers right (%)", color=SOFT)
    _calm(axes, "Tiny VLM: accuracy against compression")
    axes.grid(axis="y", color=LINE)


def _name_points(axes: Axes, places: list[tuple[float, float]], texts: list[str]) -> None:
    spots = [tuple(axes.transData.transform(place)) for place in places]
    frame = axes.get_window_extent()
    labels = place_labels(spots, texts, Box(frame.x0, frame.y0, frame.x1, frame.y1), font=FONT_POINTS * DPI / 72 * 1.05)
    for label, place in zip(labels, places, strict=True):
        axes.annotate(
            label.text,
            xy=place,
            xytext=(label.x, label.y),
            textcoords="figure pixels",
            ha="center",
            va="center",
            fontsize=FONT_POINTS,
            parse_math=False,
            arrowprops={"arrowstyle": "-", "color": SOFT, "lw": 0.6} if label.leader else None,
        )


def _latency(axes: Axes, fullsize: dict[str, Any]) -> None:
    seconds = [fullsize["dense_ms"] / 1000, fullsize["compact_ms"] / 1000]
    axes.bar(["dense", "compact"], seconds, width=0.6, color=[SOFT, COLOURS["ours"]])
    for bar, value in enumerate(seconds):
        axes.annotate(duration(1000 * value), (bar, value), (0, 5), textcoords="offset points", ha="center")
    axes.set_ylim(0, max(*seconds, 1e-6) * 1.15)
    axes.set_ylabel("seconds per image", color=SOFT)
    _calm(axes, f"Full-size tower: {figures(fullsize['speedup'])}× as fast")


def _calm(axes: Axes, title: str) -> None:
    axes.set_title(title, loc="left", fontsize=11.5, fontweight="bold", pad=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    axes.tick_params(colors=SOFT, length=0)
    axes.set_axisbelow(True)
