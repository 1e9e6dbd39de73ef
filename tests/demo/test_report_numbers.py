from __future__ import annotations

import pytest

from infoprune_rt.demo.report_numbers import (
    duration,
    figures,
    percent,
    plain,
    points,
    relative,
    runs,
    scientific,
    si,
)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (si(2_660_000), "2.66 M"),
        (si(3.4e8), "340 M"),
        (si(1380), "1.38 k"),
        (si(12), "12"),
        (si(2.1e12), "2.10 T"),
        (duration(40.123), "40.1 ms"),
        (duration(9800), "9.80 s"),
        (figures(-4.236), "−4.24"),
        (percent(relative(52, 100)), "−48 %"),
        (percent(relative(103.2, 100)), "+3.2 %"),
        (percent(relative(100, 100)), "±0.0 %"),
        (percent(relative(1, 0)), "–"),
        (points(-0.04), "±0.0"),
        (points(-0.06), "−0.1"),
        (points(1.25001), "+1.3"),
        (scientific(1.24e-6), "1.2 × 10⁻⁶"),
        (scientific(0.0), "0"),
        (plain({"a": [1, 2.5, None], "b": True, "c": []}), "a 1, 2.5, –, b yes, c –"),
        (runs(["3", "2"]), "3 · 2"),
        (runs(["3", "3"]), "3 (all)"),
        (runs(["3"]), "3"),
    ],
)
def test_numbers_are_written_as_people_read_them(written: str, expected: str) -> None:
    assert written == expected
