"""What the panels of each study's picture show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator, PercentFormatter

from infoprune_rt.benchmarking.ablations import epsilon, question_types, shift
from infoprune_rt.benchmarking.ablations.following import TERMS
from infoprune_rt.benchmarking.ablations.objectives import (
    BOTH_ALONE,
    ERANK_ALONE,
    KS_ALONE,
    MAGNITUDE,
    MICHEL,
    PAPER,
    RANDOM,
    TASK,
    TASK_ERANK,
    TASK_KS,
)
from infoprune_rt.benchmarking.ablations.summary import families, over_seeds, select, values
from infoprune_rt.benchmarking.ablations.work_file import Row

Style = dict[str, Any]
BLUE, ORANGE, GREEN, RED, PURPLE = "#0067a8", "#d1742f", "#3c8d40", "#b3262e", "#7a4fa3"
BLACK, GREY, PALE = "#333333", "#8b949e", "#c2c8ce"
WAYS: dict[str, Style] = {  # the paper's objective stands out, dotted is without the task loss, dashed are controls
    PAPER: {"color": BLUE, "lw": 2.4, "marker": "o", "zorder": 5},
    TASK_ERANK: {"color": GREEN, "marker": "s"},
    TASK_KS: {"color": ORANGE, "marker": "D"},
    TASK: {"color": PURPLE, "marker": "^"},
    BOTH_ALONE: {"color": BLUE, "ls": ":", "marker": "o"},
    ERANK_ALONE: {"color": GREEN, "ls": ":", "marker": "s"},
    KS_ALONE: {"color": ORANGE, "ls": ":", "marker": "D"},
    MICHEL: {"color": BLACK, "ls": "--", "marker": "x"},
    MAGNITUDE: {"color": GREY, "ls": "--", "marker": "x"},
    RANDOM: {"color": PALE, "ls": "--", "marker": "x"},
}
MODES: dict[str, Style] = {
    "taylor": {"color": RED},
    "rrr": {"color": ORANGE},
    "neurons": {"color": BLUE},
    "hybrid": {"color": PURPLE},
}
TERM_NAMES = dict(zip(TERMS, ("task", "eRank", "KS"), strict=True))
TERM_COLORS = dict(zip(TERMS, (PURPLE, GREEN, ORANGE), strict=True))
DRIVES = ("#a8d0ea", "#5aa5d6", BLUE, "#f0bcbf", "#dd7a7f", RED, BLACK)  # Adam, SGD, the whole loss
MOST_TYPES = 9
LEAST_NORM = 1e-9  # what is smaller is rounding
DODGE = 0.006  # of the share removed: intervals of different ways do not hide each other


def plot_heads(figure: Figure, rows: list[Row]) -> None:
    """A row of panels without refit, one with; a column per family."""
    shown, ways = families(rows), values(rows, "name")
    grid = figure.subplots(2, len(shown), sharex=True, sharey="col", squeeze=False)
    for line, refit in zip(grid, (False, True), strict=True):
        for axes, (family, title) in zip(line, shown.items(), strict=True):
            for i, way in enumerate(ways):
                _curve(axes, select(rows, name=way, refit=refit), family, way, (i - (len(ways) - 1) / 2) * DODGE)
            axes.set_title(f"{title}{', refit' if refit else ''}")
            axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
            axes.set_xticks(values(rows, "removed"))
    for axes in grid[-1]:
        axes.set_xlabel("heads removed")
        axes.set_ylim(top=min(101, axes.get_ylim()[1]))  # an interval may pass 100, an accuracy does not
    for axes in grid[:, 0]:
        axes.set_ylabel("accuracy, %")
    figure.legend(
        *grid[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=len(ways), frameon=False, fontsize=9
    )


def _curve(axes: Axes, rows: Sequence[Row], family: str, way: str, shift_x: float) -> None:
    found = [(removed, over_seeds(select(rows, removed=removed), family)) for removed in values(rows, "removed")]
    points = [(x + shift_x, e) for x, e in found if e is not None]
    means = [e.mean for _, e in points]
    whiskers = [e.half_width or 0.0 for _, e in points]
    axes.errorbar(
        [x for x, _ in points],
        means,
        whiskers if any(whiskers) else None,
        label=way,
        ms=4,
        capsize=2,
        elinewidth=0.9,
        **WAYS[way],
    )


def plot_epsilon(figure: Figure, rows: list[Row]) -> None:
    """Accuracy over epsilon, over k, and over what is left of the blocks (solid: by epsilon, dashed: by k)."""
    by_epsilon, by_size, by_parameters = panels = figure.subplots(1, 3, sharey=True)
    for mode, style in MODES.items():
        for axes, field, line in ((by_epsilon, "epsilon", "-"), (by_size, "size", "--")):
            found = [row for row in select(rows, name=mode) if row[field] is not None]
            if found:
                _knee_curve(axes, found, field, mode, {"ls": line, **style})
                _knee_curve(by_parameters, found, "parameters_left", mode, {"ls": line, **style})
    by_epsilon.set(title="by ε", xlabel="ε", ylabel="accuracy, %", xscale="log")
    by_size.set(title="by k", xlabel="k: rank, or kept neurons", xscale="log")
    by_parameters.set(title="by what is left", xlabel="block parameters left")
    by_parameters.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    for axes, field in ((by_epsilon, "epsilon"), (by_size, "size")):
        axes.set_xticks(sorted(values(rows, field)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_locator(NullLocator())
    by_epsilon.legend(frameon=False, fontsize=9)
    panels[0].margins(y=0.08)


def _knee_curve(axes: Axes, rows: Sequence[Row], field: str, mode: str, style: Style) -> None:
    points = sorted((row[field], row["accuracy"]["overall"]) for row in rows)
    bend = epsilon.knee(rows)
    axes.plot(*zip(*points, strict=True), marker="o", label=mode, ms=4, **style)
    axes.plot(bend[field], bend["accuracy"]["overall"], "o", ms=11, mfc="none", mew=1.6, color=style["color"])


def plot_gradients(figure: Figure, rows: list[Row]) -> None:
    """A panel per drive, and one with the heads closed by each."""
    *panels, last = figure.subplots(2, 4).flat
    for axes, row in zip(panels, rows, strict=True):
        for term in TERMS:
            norms = [(step, norm) for step, norm in enumerate(row[f"gradient_{term}"]) if norm]  # 0 has no logarithm
            marker = "o" if None in row[f"gradient_{term}"] else ""
            axes.plot(*_columns(norms), marker=marker, ms=3, label=TERM_NAMES[term], color=TERM_COLORS[term], lw=1.4)
        axes.set(title=_drive(row), yscale="log", xlabel="step")
    limits = [limit for axes in panels for limit in axes.get_ylim()]
    for axes in panels:
        axes.set_ylim(max(min(limits), LEAST_NORM), max(limits))
        axes.yaxis.set_minor_locator(NullLocator())
    for axes in panels[::4]:
        axes.set_ylabel("gradient norm")
    panels[0].legend(frameon=False, fontsize=9)
    for row, color in zip(rows, DRIVES, strict=True):
        last.plot(row["heads_closed"], label=_drive(row), color=color, lw=1.6)
    last.set(title="heads with ζ < 0.5", xlabel="step")
    last.legend(frameon=False, fontsize=7)
    for axes in (*panels, last):
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _drive(row: Row) -> str:
    return f"{row['name']}, {row['optimizer']}, lr {row['lr']:g}"


def plot_question_types(figure: Figure, rows: list[Row]) -> None:
    """A panel per linear map, a line per type; of many types the most frequent."""
    panels = figure.subplots(1, 2, sharey=True)
    dense = rows[0]
    kinds = sorted(dense["types"], key=lambda kind: -dense["types"][kind]["questions"])[:MOST_TYPES]
    for axes, mode in zip(panels, question_types.MODES, strict=True):
        found = [dense, *select(rows, name=mode)]
        blocks = [row["linear_blocks"] for row in found]
        for i, kind in enumerate(kinds):
            scores = [row["types"].get(kind, {}).get("accuracy") for row in found]
            axes.plot(blocks, scores, "o-", ms=4, label=kind, color=f"C{i}")
        axes.set(title=f"linear by {mode}", xlabel="blocks with a linear FFN", xticks=blocks)
    panels[0].set_ylabel("accuracy, %")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)


def plot_shift(figure: Figure, rows: list[Row]) -> None:
    """A panel per recipe: a place for each style tested on, a mark for each it was fitted on."""
    panels = figure.subplots(1, 2, sharey=True)
    tested, fitted = values(rows, "tested_on"), values(rows, "fitted_on")
    for axes, name in zip(panels, (shift.FFN, shift.BOTH), strict=True):
        marks = [("dense model", BLACK, "_", select(rows, name=shift.DENSE))]
        for style, color in zip(fitted, (BLUE, ORANGE, GREEN), strict=True):
            marks.append((f"fitted on {style} pictures", color, "o", select(rows, name=name, fitted_on=style)))
        for i, (label, color, marker, chosen) in enumerate(marks):
            found = [(x, over_seeds(select(chosen, tested_on=style))) for x, style in enumerate(tested)]
            points = [(x + (i - len(marks) / 2) * 0.12, e.mean, e.half_width or 0.0) for x, e in found if e is not None]
            for x, mean, half in points:
                axes.errorbar(x, mean, half or None, color=color, marker=marker, ms=8, mew=2, capsize=3, label=label)
                label = ""  # once in the legend
        axes.set(title=name, xticks=range(len(tested)), xlim=(-0.5, len(tested) - 0.5))
        axes.set_xticklabels([f"tested on {style}" for style in tested])
    panels[0].yaxis.set_major_locator(MaxNLocator(8, integer=True))
    panels[0].set_ylabel("accuracy, %")
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, frameon=False, fontsize=9
    )
