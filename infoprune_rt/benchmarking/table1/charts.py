"""Table 1 as pictures."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from infoprune_rt.benchmarking.table1.goals import Row
from infoprune_rt.benchmarking.table1.methods import BOTH, DENSE, OURS, YOPO
from infoprune_rt.benchmarking.table1.show import base_of

_COLORS = {DENSE: "#6b7280", YOPO: "#d97706", OURS: "#2563eb", BOTH: "#7c3aed"}
_MARKERS = {False: "o", True: "D"}  # whether a row skips what it prunes
_DPI = 110


def _label(row: Row) -> str:
    return f"{row['method']}, {row['execution']}\n{row['engine']}"


def stage_bars(rows: Sequence[Row]) -> Figure:
    """Milliseconds to the first token, tower and language model apart."""
    figure: Figure
    figure, axes = plt.subplots(figsize=(8.5, 0.48 * len(rows) + 1.2), dpi=_DPI)
    places = range(len(rows))
    tower, prefill = ([row[f"{stage}_p50_ms"] for row in rows] for stage in ("tower", "prefill"))
    colors = [_COLORS[row["method"]] for row in rows]
    axes.barh(places, tower, color=colors)
    axes.barh(places, prefill, left=tower, color=colors, alpha=0.45)
    for place, row in zip(places, rows, strict=True):
        end = row["tower_p50_ms"] + row["prefill_p50_ms"]  # of medians, which need not be the median of the sum
        axes.text(end, place, f" {row['first_token_p50_ms']:.0f}", va="center", fontsize=8)
    axes.set_yticks(places, [_label(row) for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel("ms to the first token: the tower (dark), the language model (light)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


def latency_against_flops(rows: Sequence[Row]) -> Figure:
    """Latency against what is computed: points on one line would mean that FLOPs tell the time."""
    figure: Figure
    figure, axes = plt.subplots(figsize=(8.5, 4.2), dpi=_DPI)
    for row in rows:
        x, y = row["flops"] / 1e12, row["first_token_p50_ms"]
        marker = _MARKERS[row["execution"] == "compact"]
        axes.scatter(x, y, color=_COLORS[row["method"]], marker=marker, s=36, zorder=3)
    for method, color in _COLORS.items():
        axes.scatter([], [], color=color, label=method)
    for skips, told in ((False, "everything computed"), (True, "compact: skips")):
        axes.scatter([], [], color="#9ca3af", marker=_MARKERS[skips], label=told)
    base = base_of(rows)
    slope = base["first_token_p50_ms"] / base["flops"] * 1e12
    longest = max(row["flops"] for row in rows) / 1e12
    axes.plot([0, longest], [0, slope * longest], color="#9ca3af", lw=1, ls="--", label="dense at SDPA's rate")
    axes.set_xlim(0)
    axes.set_ylim(0)
    axes.set_xlabel("TFLOP to the first token (2 x MAC, tower and language model)")
    axes.set_ylabel("ms to the first token")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure
