"""A picture of the rows: one panel per case, a bar per contender, its length the median, the whisker the p90."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from infoprune_rt.benchmarking.cpu_tower.measuring import Row
from infoprune_rt.benchmarking.cpu_tower.show import by_case
from infoprune_rt.files import write_file

COLUMNS, DPI = 2, 110
PANEL_WIDTH, BAR_HEIGHT, PANEL_REST = 6.5, 0.26, 0.85  # inches; rest: title, axis, air
OURS, OTHERS, SOFT, LINE = "#0067a8", "#b9c0c7", "#59636e", "#dfe3e6"


def plot(rows: Sequence[Row], path_png: Path) -> None:
    """Write the picture."""
    panels = list(by_case(rows).items())
    lines = [panels[i : i + COLUMNS] for i in range(0, len(panels), COLUMNS)]
    bars = [max(len(shown) for _, shown in line) for line in lines]
    heights = [PANEL_REST + BAR_HEIGHT * count for count in bars]
    figure = Figure((COLUMNS * PANEL_WIDTH, sum(heights)), dpi=DPI, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(len(lines), COLUMNS, height_ratios=heights)
    for i, line in enumerate(lines):
        for j, (title, shown) in enumerate(line):
            _panel(figure.add_subplot(grid[i, j]), title, shown, bars[i])
    write_file(path_png, lambda aside: figure.savefig(aside, format="png"))


def _panel(axes: Axes, title: str, rows: Sequence[Row], bars: int) -> None:
    names = [row["name"].removeprefix("compact, ") for row in rows]
    medians, tails = [row["p50_ms"] for row in rows], [row["p90_ms"] for row in rows]
    colours = [OURS if "csrc" in name else OTHERS for name in names]
    axes.barh(names, medians, height=0.7, color=colours)
    whiskers = [[0.0] * len(rows), [tail - median for median, tail in zip(medians, tails, strict=True)]]
    axes.errorbar(medians, names, xerr=whiskers, fmt="none", ecolor=SOFT, capsize=3, lw=1)
    for name, median, tail in zip(names, medians, tails, strict=True):
        text = f"{median:.{0 if median >= 100 else 1}f} ms"
        axes.annotate(text, (tail, name), (6, 0), textcoords="offset points", va="center")
    axes.set_ylim(bars - 0.5, -0.5)  # the first on top, and equally thick bars in all panels
    axes.set_xlim(0, max(tails) * 1.3)  # room for the figures behind the bars
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_title(title, loc="left", fontsize=10, fontweight="bold")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(LINE)
    axes.tick_params(colors=SOFT, length=0)
    axes.grid(axis="x", color=LINE)
    axes.set_axisbelow(True)
