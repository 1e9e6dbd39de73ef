"""What the report's plots share: scales with round ticks, and labels that keep out of each other's way."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from infoprune_rt.demo.report_numbers import MINUS, power_of_ten

CHARACTER = 0.56  # mean width of a letter of a sans-serif face, in font sizes
NEAR_PLACES = 8


@dataclass(frozen=True)
class Box:
    """A rectangle in pixels; ``top`` is the smaller y."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        """Whether the two share any area."""
        across = self.left < other.right and other.left < self.right
        return across and self.top < other.bottom and other.top < self.bottom

    def nearest(self, x: float, y: float) -> tuple[float, float]:
        """The point of this box that is nearest to the given one; that one itself if it lies inside."""
        return min(max(x, self.left), self.right), min(max(y, self.top), self.bottom)

    def holds(self, other: Box) -> bool:
        """Whether the other lies wholly inside."""
        across = self.left <= other.left and other.right <= self.right
        return across and self.top <= other.top and other.bottom <= self.bottom


@dataclass(frozen=True)
class Scale:
    """Values from ``low`` to ``high`` on pixels from ``start`` to ``end``; evenly, or by their logarithms."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Pixel of a value; outside the range it stays at the edge."""
        low, high, here = (self._spread(number) for number in (self.low, self.high, value))
        share = min(max((here - low) / (high - low), 0.0), 1.0)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[tuple[float, str]]:
        """Pixels and texts of the round values in the range."""
        if self.logarithmic:
            first, last = math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9)
            return [(self.at(10.0**power), power_of_ten(power)) for power in range(first, last + 1)]
        return [(self.at(value), f"{value:g}".replace("-", MINUS)) for value in self._round_values()]

    def _round_values(self) -> list[float]:
        step = round_step(self.high - self.low)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [round(index * step, 9) + 0.0 for index in range(first, last + 1)]

    def _spread(self, value: float) -> float:
        return math.log10(max(value, self.low)) if self.logarithmic else value


def round_step(span: float, wanted: int = 5) -> float:
    """The 1, 2 or 5 times a power of ten that cuts ``span`` into about ``wanted`` pieces."""
    power: float = 10.0 ** math.floor(math.log10(span / wanted))
    return next(power * factor for factor in (1, 2, 5, 10) if span / (power * factor) <= wanted)


def round_range(values: Sequence[float], least_span: float) -> tuple[float, float]:
    """The values' range widened to round numbers, at least ``least_span`` wide."""
    low, high = min(values), max(values)
    step = round_step(max(high - low, least_span))
    bottom = math.floor(low / step) * step
    return bottom, max(math.ceil(high / step) * step, bottom + step, bottom + least_span)


def shorten(text: str, most: int = 30) -> str:
    """The text, cut with an ellipsis beyond ``most`` characters."""
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


@dataclass(frozen=True)
class Label:
    """A placed text: the centre of its line, and where a line from its point ends (none: it stands close enough)."""

    text: str
    x: float
    y: float
    leader: tuple[float, float] | None


def place_labels(points: Sequence[tuple[float, float]], texts: Sequence[str], area: Box, font: float) -> list[Label]:
    """Put every text beside its point inside ``area``, clear of all points and of the other texts.

    Near places are tried before far ones. In crowds a line may cross other texts, and where no place is free at all,
    the first one inside the area is taken.
    """
    taken = [Box(x - font / 2, y - font / 2, x + font / 2, y + font / 2) for x, y in points]
    labels = []
    for point, text in zip(points, texts, strict=True):
        width = CHARACTER * font * len(text)
        places = [_box(point[0] + dx, point[1] + dy, width, font) for dx, dy in _offsets(width, font)]
        inside = [place for place in places if area.holds(place)] or places[:1]
        free = [place for place in inside if not any(box.overlaps(place) for box in taken)] or inside[:1]
        place = next((place for place in free if _is_reachable(place, point, taken)), free[0])
        near = places.index(place) < NEAR_PLACES
        middle = ((place.left + place.right) / 2, (place.top + place.bottom) / 2)
        labels.append(Label(text, *middle, leader=None if near else place.nearest(*point)))
        taken.append(place)
    return labels


def _is_reachable(place: Box, point: tuple[float, float], taken: Sequence[Box]) -> bool:
    """Whether a line to this place from its point would touch nothing but the point itself."""
    x, y = place.nearest(*point)
    steps = [step / 20 for step in range(21)]
    line = [(point[0] + step * (x - point[0]), point[1] + step * (y - point[1])) for step in steps]
    others = [box for box in taken if box.nearest(*point) != point]
    return not any(box.nearest(*spot) == spot for box in others for spot in line)


def _offsets(width: float, font: float) -> list[tuple[float, float]]:
    """Centres of a text relative to its point: eight places at each of several distances."""
    found = []
    for away in (0.8 * font, 2.0 * font, 3.4 * font, 5.0 * font):
        beside, above = width / 2 + away, font / 2 + away
        found += [(beside, 0.0), (-beside, 0.0), (0.0, -above), (0.0, above)]
        found += [(beside, -above), (beside, above), (-beside, -above), (-beside, above)]
    return found


def _box(x: float, y: float, width: float, height: float) -> Box:
    return Box(x - width / 2, y - 0.6 * height, x + width / 2, y + 0.6 * height)
