"""Rows say whether an answer was right, and peaks are those of the run itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from infoprune_rt.benchmarking.cpu_tower import memory
from infoprune_rt.benchmarking.cpu_tower.cases import Case, cases
from infoprune_rt.benchmarking.cpu_tower.contenders import (
    CONTENDERS,
    DENSE,
    ONE_BY_ONE,
    OUR_DENSE,
    OURS,
    PLAIN,
    SLOW,
    contenders,
)
from infoprune_rt.benchmarking.cpu_tower.measuring import Candidate, measure, relative_error

NO_PEAKS = not Path("/proc/self/clear_refs").exists()


def test_errors_are_relative_to_the_largest_value() -> None:
    exact = torch.tensor([1.0, -4.0])
    assert relative_error(exact, exact) == 0
    assert relative_error(torch.tensor([1.0, -3.0]).bfloat16(), exact) == 0.25


@pytest.mark.parametrize("answer", [torch.zeros(3), torch.tensor([1.0, torch.nan]), torch.tensor([torch.inf, 1.0])])
def test_what_is_no_answer_has_no_error(answer: torch.Tensor) -> None:
    assert relative_error(answer, torch.ones(2)) is None


@pytest.mark.parametrize(
    ("error", "dtype", "checked"),
    [(None, "bfloat16", False), (0.0, "float32", True), (0.01, "bfloat16", True), (0.01, "float32", False)],
)
def test_rows_say_what_was_right(error: float | None, dtype: str, checked: bool) -> None:
    case = Case(((2, 4), (2, 2)), threads=1, blocks=3)
    (row,) = measure([Candidate("it", lambda: torch.ones(1), error, 1e6, dtype)], case, rounds=2)
    assert (row["checked"], row["max_error"], row["rounds"]) == (checked, error, 2)
    assert (row["patches"], row["images"], row["blocks"], row["threads"]) == (12, 2, 3, 1)
    reached = 1e6 / (row["p50_ms"] / 1000) / 1e12
    assert row["share_of_gemm_rate"] == pytest.approx(reached / row["gemm_tflops"])


def test_who_runs_what() -> None:
    def names(case: Case, quick: bool) -> list[str]:
        return [c.name for c in contenders(case, quick)]

    large, mixed = cases(True, 2)[2:]
    assert (large.patches, mixed.patches, len(mixed.grids)) == (4096, 7216, 16)
    assert not set(SLOW) & set(names(large, True))
    assert set(SLOW) < set(names(large, False))
    assert names(mixed, True) == [PLAIN, OURS, ONE_BY_ONE]
    assert ONE_BY_ONE not in names(large, True)
    assert names(cases(False, 2)[-1], False) == [DENSE, OUR_DENSE, PLAIN, OURS]
    assert {c.name for case in cases(False, 2) for c in contenders(case, False)} == {c.name for c in CONTENDERS}
    assert {case.threads for case in cases(False, 1)} == {1}
    assert len(cases(False, 1)) == len(set(cases(False, 1)))


@pytest.mark.skipif(NO_PEAKS, reason="needs Linux's /proc")
def test_a_peak_is_what_a_run_takes_on_top() -> None:
    held = torch.ones(2**24)  # 64 MiB that were there before
    for _ in range(2):  # what the first one freed is not hidden from the second
        assert 0.9 * 2**27 < memory.growth(lambda: torch.ones(2**25).sum()) < 1.2 * 2**27
    assert held[-1] == 1


@pytest.mark.skipif(NO_PEAKS, reason="needs Linux's /proc")
def test_peaks_of_a_tower_come_from_a_process_of_their_own() -> None:
    case = Case(((32, 32),), threads=1, blocks=1)
    stream = 2 * case.patches * 1280  # x in bfloat16, the least that a pass must hold
    peak = memory.peak_bytes(OURS, case)
    assert peak is not None
    assert stream < peak < 100 * stream
