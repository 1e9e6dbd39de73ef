"""The report's plots of whole models, as numbers in pixels; ``report.html.jinja`` turns them into SVG.

Plots are drawn as SVG elements styled by the page, so that they follow dark mode, and are narrow enough to stay
readable on a phone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from infoprune_rt.demo.report_geometry import Box, Label, Scale, place_labels, round_range, shorten
from infoprune_rt.demo.report_numbers import relative

WIDTH, HEIGHT, FONT = 440, 310, 13.0
AREA = Box(60, 14, WIDTH - 14, HEIGHT - 46)
LATENCY_AREA, BAR_HEIGHT = Box(74, 14, WIDTH - 14, 144), 34

# Variants of one origin share a colour and a marker; what the demo adds later is drawn like the control.
ORIGINS = {"dense": "dense", "heads": "ours", "ffn": "ours", "both": "ours", "paper_heads": "paper", "paper": "paper"}


def origin(name: str) -> str:
    """Which of dense, ours, paper and control a variant belongs to."""
    return ORIGINS.get(name, "control")


@dataclass(frozen=True)
class Axes:
    """Ticks (pixel, text) and titles of both axes."""

    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    x_title: str
    y_title: str


@dataclass(frozen=True)
class Mark:
    """A variant's place in the scatter plot."""

    x: float
    y: float
    origin: str
    title: str


@dataclass(frozen=True)
class Scatter:
    """Accuracy against compression."""

    axes: Axes
    marks: list[Mark]
    labels: list[Label]


def removed_and_accuracy(report: dict[str, Any]) -> list[tuple[float, float]]:
    """Of every variant: tower parameters removed (percent) and overall accuracy (percent)."""
    base = report["dense"]["parameters"]
    return [
        (-(relative(variant["parameters"], base) or 0.0), variant["accuracy"]["overall"])
        for variant in report["variants"]
    ]


def scatter(report: dict[str, Any]) -> Scatter:
    """Overall accuracy of every variant over the share of tower parameters that it removes."""
    places = removed_and_accuracy(report)
    low_x, high_x = round_range([0.0, *(removed for removed, _ in places)], 10.0)
    low_y, high_y = round_range([accuracy for _, accuracy in places], 10.0)
    # Room for markers and names: dense sits at zero, and most variants crowd near the top.
    x = Scale(low_x, high_x, AREA.left + 10, AREA.right - 10)
    y = Scale(low_y, high_y, AREA.bottom - 10, AREA.top + 30)
    spots = [(x.at(removed), y.at(accuracy)) for removed, accuracy in places]
    texts = [shorten(variant["label"]) for variant in report["variants"]]
    marks = [
        Mark(*spot, origin(variant["name"]), f"{variant['label']}: {accuracy:.1f} % right, {removed:.1f} % removed")
        for spot, variant, (removed, accuracy) in zip(spots, report["variants"], places, strict=True)
    ]
    axes = Axes(x.ticks(), y.ticks(), "tower parameters removed (%)", "answers right (%)")
    return Scatter(axes, marks, place_labels(spots, texts, AREA, FONT))


@dataclass(frozen=True)
class LatencyBar:
    """A horizontal bar up to the median, with the single runs as dots."""

    name: str
    y: float
    end: float
    milliseconds: float
    runs: list[float]


@dataclass(frozen=True)
class Latency:
    """The full-size tower, dense and compact."""

    axes: Axes
    bars: list[LatencyBar]


def latency(fullsize: dict[str, Any]) -> Latency:
    """Median latency of both full-size towers, in seconds from zero."""
    both = [fullsize["dense_ms"], fullsize["compact_ms"], *fullsize["dense_ms_all"], *fullsize["compact_ms_all"]]
    most = max(*both, 1e-3) / 1000
    # Room on the right for the longer bar's own figure.
    x = Scale(0, most * 1.25, LATENCY_AREA.left, LATENCY_AREA.right)
    bars = [
        LatencyBar(
            name,
            LATENCY_AREA.top + 20 + 56 * row,
            x.at(fullsize[f"{name}_ms"] / 1000),
            fullsize[f"{name}_ms"],
            [x.at(run / 1000) for run in fullsize[f"{name}_ms_all"]],
        )
        for row, name in enumerate(("dense", "compact"))
    ]
    return Latency(Axes(x.ticks(), [], "seconds per image", ""), bars)
