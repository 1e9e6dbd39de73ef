"""How the report writes its numbers: three figures, SI prefixes, and changes against the dense model."""

from __future__ import annotations

import math
from typing import Any

PREFIXES = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))
MINUS = "−"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
NOTHING = "–"


def figures(value: float) -> str:
    """Three significant figures without an exponent, and never fewer than the whole part: 4.1, 40.1, 1380."""
    decimals = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return _signed(f"{value:.{decimals}f}")


def si(value: float) -> str:
    """A count with its SI prefix: 2.66 M, 340 M, 1.38 k, 12."""
    for prefix, factor in PREFIXES:
        if abs(value) >= factor:
            return f"{figures(value / factor)} {prefix}"
    return f"{value:g}"


def duration(milliseconds: float) -> str:
    """Milliseconds, or seconds from one second on."""
    return f"{figures(milliseconds / 1000)} s" if milliseconds >= 1000 else f"{figures(milliseconds)} ms"


def power_of_ten(exponent: int) -> str:
    """Powers of ten in print: 10⁻³, and 1 for the zeroth."""
    return f"10{str(exponent).translate(SUPERSCRIPTS)}" if exponent else "1"


def scientific(value: float) -> str:
    """Two significant figures for very small and very large numbers: 1.2 × 10⁻⁶; exactly zero is 0."""
    if not value:
        return "0"
    digits, exponent = f"{value:.1e}".split("e")
    return f"{_signed(digits)} × {power_of_ten(int(exponent))}"


def relative(value: float, base: float) -> float | None:
    """Change of ``value`` against ``base`` in percent; none where the base is (next to) zero."""
    change = 100 * (value - base) / base if base else math.inf
    return change if math.isfinite(change) else None


def percent(change: float | None) -> str:
    """A change in percent with its sign: −48 %, +3 %, ±0 %."""
    return NOTHING if change is None else f"{_change(change, 0 if abs(change) >= 10 else 1)} %"


def points(change: float) -> str:
    """A change in percentage points with its sign: −0.8, +1.2, ±0.0."""
    return _change(change, 1)


def plain(value: Any) -> str:
    """Any JSON value as words: lists and nested tables joined by commas."""
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return ", ".join(f"{key} {plain(item)}" for key, item in value.items()) or NOTHING
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value) or NOTHING
    return f"{value:g}" if isinstance(value, float) else str(value)


def runs(items: list[str]) -> str:
    """Per-block values in short: ``3 · 2 · 4``, or ``192 (all)`` where they are all the same."""
    same = len(items) > 1 and len(set(items)) == 1
    return f"{items[0]} (all)" if same else " · ".join(items)


def _change(change: float, decimals: int) -> str:
    text = f"{change:.{decimals}f}"
    if not float(text):
        return f"±{abs(float(text)):.{decimals}f}"
    return _signed(text) if change < 0 else f"+{text}"


def _signed(text: str) -> str:
    return text.replace("-", MINUS)
