from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infoprune_rt.demo.report_geometry import CHARACTER, Box, Scale, place_labels, round_range, round_step, shorten

AREA = Box(0, 0, 1000, 600)
FONT = 12.0


@given(span=st.floats(1e-6, 1e9))
def test_steps_are_round_and_about_as_many_as_wanted(span: float) -> None:
    step = round_step(span)
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-9)
    assert min(abs(mantissa - factor) for factor in (1, 2, 5)) < 1e-6
    assert 1.9 < span / step < 5.0001


@given(values=st.lists(st.floats(-1000, 1000), min_size=1))
def test_round_range_holds_all_values(values: list[float]) -> None:
    low, high = round_range(values, 10.0)
    assert low <= min(values)
    assert max(values) <= high
    assert high - low >= 10


@given(low=st.floats(-100, 100), span=st.floats(0.1, 1000))
def test_ticks_lie_where_their_numbers_belong(low: float, span: float) -> None:
    scale = Scale(low, low + span, 300, 20)
    for pixel, text in scale.ticks():
        share = (300 - pixel) / 280
        assert float(text.replace("−", "-")) == pytest.approx(low + share * span, abs=1e-4 * (span + abs(low)))


def test_a_logarithmic_scale_is_even_in_decades() -> None:
    scale = Scale(1e-4, 1.0, 400, 0, logarithmic=True)
    assert scale.ticks() == [(400, "10⁻⁴"), (300, "10⁻³"), (200, "10⁻²"), (100, "10⁻¹"), (0, "1")]
    assert scale.at(0.0) == 400


def test_labels_of_scattered_and_of_coinciding_points_do_not_overlap() -> None:
    points = [(100.0, 100.0), (100.0, 100.0), (100.0, 104.0), (500.0, 300.0), (510.0, 300.0), (995.0, 5.0)]
    texts = ["dense", "heads by zeta + refit", "random heads", "both", "the paper's recipe", "in the corner"]
    labels = place_labels(points, texts, AREA, FONT)
    boxes = []
    for label in labels:
        half = CHARACTER * FONT * len(label.text) / 2
        boxes.append(Box(label.x - half, label.y - FONT / 2, label.x + half, label.y + FONT / 2))
    assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
    assert all(AREA.holds(box) for box in boxes)


def test_a_crowd_still_gets_a_label_each() -> None:
    labels = place_labels([(500.0, 300.0)] * 60, ["the same place"] * 60, AREA, FONT)
    assert len(labels) == 60
    assert any(label.leader for label in labels)


def test_long_texts_are_cut() -> None:
    assert shorten("x" * 31) == "x" * 29 + "…"
    assert shorten("x" * 30) == "x" * 30
