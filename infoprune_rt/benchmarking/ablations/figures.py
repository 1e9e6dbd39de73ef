"""One picture per study, with its caption in it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from infoprune_rt.benchmarking.ablations import epsilon, gradients, heads, question_types, shift
from infoprune_rt.benchmarking.ablations.captions import caption
from infoprune_rt.benchmarking.ablations.plots import (
    plot_epsilon,
    plot_gradients,
    plot_heads,
    plot_question_types,
    plot_shift,
)
from infoprune_rt.benchmarking.ablations.summary import select
from infoprune_rt.files import write_file

DPI, PANEL_WIDTH, PANEL_HEIGHT = 110, 4.6, 3.5  # inches
CHARACTERS_PER_INCH, LINE = 16, 0.17  # of the caption
SOFT, RULE = "#59636e", "#dfe3e6"

Draw = Callable[[Figure, list[dict[str, Any]]], None]
FIGURES: dict[str, tuple[int, int, Draw]] = {  # group -> rows and columns of panels, and who fills them
    heads.GROUP: (2, 4, plot_heads),
    epsilon.GROUP: (1, 3, plot_epsilon),
    gradients.GROUP: (2, 4, plot_gradients),
    question_types.GROUP: (1, 2, plot_question_types),
    shift.GROUP: (1, 2, plot_shift),
}


def figure_path(result_file: Path, group: str) -> Path:
    """Where a group's picture lies: beside the result file."""
    return result_file.with_name(f"{result_file.stem}-{group.replace(' ', '-')}.png")


def draw(result: dict[str, Any], result_file: Path) -> list[Path]:
    """Draw every group that has rows; the files written."""
    written = []
    for group, (lines, columns, fill) in FIGURES.items():
        rows = select(result["rows"], group=group)
        if not rows:
            continue
        width = columns * PANEL_WIDTH
        told = textwrap.wrap(caption(result, group), round(width * CHARACTERS_PER_INCH))
        foot = LINE * (len(told) + 1)
        height = lines * PANEL_HEIGHT + foot
        layout = ConstrainedLayoutEngine(rect=(0, foot / height, 1, 1 - foot / height), w_pad=0.08, h_pad=0.08)
        figure = Figure((width, height), dpi=DPI, facecolor="white", layout=layout)
        FigureCanvasAgg(figure)
        fill(figure, rows)
        for axes in figure.axes:
            _plain(axes)
        figure.text(0.01, foot / height / 2, "\n".join(told), fontsize=8.5, color=SOFT, va="center")
        path = figure_path(result_file, group)
        write_file(path, partial(figure.savefig, format="png"))
        written.append(path)
    return written


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.tick_params(colors=SOFT, length=0, labelsize=8)
    axes.grid(color=RULE, lw=0.7)
    axes.set_axisbelow(True)
    axes.set_title(axes.get_title(), fontsize=10, fontweight="bold")
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=SOFT, fontsize=9)
