"""The report's plots of single blocks, as numbers in pixels: heads, ζ and FFN spectra."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infoprune_rt.demo.report_charts import AREA, Axes
from infoprune_rt.demo.report_geometry import Scale

DEEPEST_FLOOR = 1e-6  # discarded energies below this are rounding
FIRST_BLOCK, LAST_BLOCK = (47, 111, 208), (224, 138, 30)  # blue to orange: apart for every kind of colour vision
MOST_NUMBERED = 16  # blocks or heads beyond this many get no text of their own


@dataclass(frozen=True)
class HeadBar:
    """One block: its dense and its kept bar share x and width; ``top`` is where the kept one ends."""

    x: float
    width: float
    top: float
    kept: int
    block: int


@dataclass(frozen=True)
class HeadBars:
    """Heads kept per block against the dense count."""

    axes: Axes
    bars: list[HeadBar]
    dense_top: float
    numbered: bool


def head_bars(kept: Sequence[int], num_heads: int) -> HeadBars:
    """A bar a block; the dense count stands behind each."""
    y = Scale(0, num_heads, AREA.bottom, AREA.top + 18)
    pitch = (AREA.right - AREA.left) / len(kept)
    bars = [
        HeadBar(AREA.left + (block + 0.14) * pitch, 0.72 * pitch, y.at(count), count, block)
        for block, count in enumerate(kept)
    ]
    every = math.ceil(len(kept) / MOST_NUMBERED)
    blocks = [(bar.x + bar.width / 2, str(bar.block)) for bar in bars[::every]]
    whole = [(pixel, text) for pixel, text in y.ticks() if text.isdigit()]
    return HeadBars(Axes(blocks, whole, "block", "heads"), bars, y.at(num_heads), len(kept) <= MOST_NUMBERED)


@dataclass(frozen=True)
class Cell:
    """One head's ζ."""

    x: float
    y: float
    zeta: float
    kept: bool
    title: str


@dataclass(frozen=True)
class ZetaMap:
    """ζ of every head: a row a block, a column a head."""

    axes: Axes
    cells: list[Cell]
    width: float
    height: float
    numbered: bool


def zeta_map(zeta: Sequence[Sequence[float]], kept: Sequence[int]) -> ZetaMap:
    """Cells of all heads; in every block the ``kept`` heads of largest ζ are marked."""
    width = (AREA.right - AREA.left) / max(map(len, zeta))
    height = (AREA.bottom - AREA.top) / len(zeta)
    cells = []
    for block, (row, count) in enumerate(zip(zeta, kept, strict=True)):
        best = set(sorted(range(len(row)), key=row.__getitem__, reverse=True)[:count])
        for head, value in enumerate(row):
            title = f"block {block}, head {head}: ζ {value:.3f}, {'kept' if head in best else 'removed'}"
            cells.append(Cell(AREA.left + head * width, AREA.top + block * height, value, head in best, title))
    heads, blocks = max(map(len, zeta)), len(zeta)
    columns = [(AREA.left + (head + 0.5) * width, str(head)) for head in range(heads)]
    rows = [(AREA.top + (block + 0.5) * height, str(block)) for block in range(blocks)]
    axes = Axes(_thinned(columns), _thinned(rows), "head", "block")
    return ZetaMap(axes, cells, width, height, numbered=max(heads, blocks) <= MOST_NUMBERED // 2)


@dataclass(frozen=True)
class Curve:
    """One block's spectrum as SVG points, and where its chosen rank lies (none: the block stayed dense)."""

    block: int
    points: str
    colour: str
    rank: int | None
    chosen: tuple[float, float] | None


@dataclass(frozen=True)
class Spectra:
    """Energy that a linear map of rank k discards, per block."""

    axes: Axes
    curves: list[Curve]
    epsilon_y: float


def spectra(taylor: dict[str, Any]) -> Spectra:
    """Discarded energy over the rank, on a logarithmic scale that ends a decade below epsilon."""
    epsilon = min(max(taylor["epsilon"], DEEPEST_FLOOR), 1.0)
    floor = 10.0 ** (math.floor(math.log10(epsilon) - 1e-9) - 1)
    widest = max(map(len, taylor["discarded_energy"])) - 1
    x = Scale(0, max(widest, 1), AREA.left, AREA.right)
    y = Scale(floor, 1.0, AREA.bottom, AREA.top, logarithmic=True)
    energies, ranks = taylor["discarded_energy"], taylor["ranks"]
    curves = [
        _curve(block, energy, rank, colour, x, y)
        for block, (energy, rank, colour) in enumerate(zip(energies, ranks, _colours(len(ranks)), strict=True))
    ]
    return Spectra(Axes(x.ticks(), y.ticks(), "rank k", "energy discarded"), curves, y.at(epsilon))


def _curve(block: int, energy: Sequence[float], rank: int | None, colour: str, x: Scale, y: Scale) -> Curve:
    below = next((k for k, value in enumerate(energy) if value < y.low), len(energy) - 1)
    points = " ".join(f"{x.at(k):.1f},{y.at(value):.1f}" for k, value in enumerate(energy[: below + 1]))
    chosen = None if rank is None else (x.at(rank), y.at(energy[min(rank, len(energy) - 1)]))
    return Curve(block, points, colour, rank, chosen)


def _colours(count: int) -> list[str]:
    shares = [index / max(count - 1, 1) for index in range(count)]
    mixed = [[round(a + share * (b - a)) for a, b in zip(FIRST_BLOCK, LAST_BLOCK, strict=True)] for share in shares]
    return [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in mixed]


def _thinned(ticks: list[tuple[float, str]]) -> list[tuple[float, str]]:
    return ticks[:: math.ceil(len(ticks) / MOST_NUMBERED)]
