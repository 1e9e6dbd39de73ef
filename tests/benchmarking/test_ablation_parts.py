"""Intervals, the work file, pairs of rows, question types, styles: each against what can be said by hand."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from infoprune_rt.benchmarking.ablations.epsilon import knee
from infoprune_rt.benchmarking.ablations.following import euler_residual
from infoprune_rt.benchmarking.ablations.intervals import estimate
from infoprune_rt.benchmarking.ablations.jobs import Cost, Job, Rates
from infoprune_rt.benchmarking.ablations.objectives import BOTH_ALONE, KS_ALONE, PAPER, TASK_KS
from infoprune_rt.benchmarking.ablations.options import Options
from infoprune_rt.benchmarking.ablations.styles import PLAIN, STYLES, restyled
from infoprune_rt.benchmarking.ablations.subject import by_type, type_of
from infoprune_rt.benchmarking.ablations.summary import lead
from infoprune_rt.benchmarking.ablations.verdicts import judged, verdicts
from infoprune_rt.benchmarking.ablations.work_file import WorkFile
from infoprune_rt.demo.handwriting import read_handwriting, write_handwriting
from infoprune_rt.errors import InfopruneError
from infoprune_rt.evaluation.answering import Answer
from infoprune_rt.evaluation.dataset import VQADataset, VQAExample

POINTS = st.lists(st.floats(0, 100), min_size=2, max_size=8)
QUESTION_TYPES = {
    *("what digit", "which color", "how many", "is there"),
    *("read number", "read digit"),
    *("side", "same color", "extreme"),
}


# -- intervals


def test_students_interval_by_hand() -> None:
    found = estimate([94.0, 95.0, 97.0])
    # mean 286 / 3, s^2 = 7 / 3, t_{2, 0.975} = 4.3027 from a printed table
    assert found.mean == pytest.approx(286 / 3)
    assert found.half_width == pytest.approx(4.3027 * (7 / 3) ** 0.5 / 3**0.5, rel=1e-4)
    assert (found.n, str(found)) == (3, "95.3 ± 3.8")


def test_one_seed_has_no_interval() -> None:
    found = estimate([96.1])
    assert (found.mean, found.half_width, found.low, found.n, str(found)) == (96.1, None, None, 1, "96.1")
    with pytest.raises(InfopruneError, match="at least one value"):
        estimate([])


@given(values=POINTS, move=st.floats(-50, 50), data=st.data())
def test_intervals_move_with_their_values_and_ignore_order(
    values: list[float], move: float, data: st.DataObject
) -> None:
    found = estimate(values)
    other = estimate(data.draw(st.permutations([value + move for value in values])))
    assert other.mean == pytest.approx(found.mean + move, abs=1e-9)
    assert other.half_width == pytest.approx(found.half_width, abs=1e-9)


@given(values=st.lists(st.floats(0, 1), min_size=2, max_size=6))
def test_more_seeds_of_the_same_spread_give_a_narrower_interval(values: list[float]) -> None:
    few, many = estimate(values), estimate(values * 4)
    assert few.half_width is not None
    assert many.half_width is not None
    assert many.half_width <= few.half_width + 1e-12


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ([1.0, 1.1, 1.2], "holds over 3 seeds of learning, on these test questions"),
        ([-1.0, -1.1, -1.2], "the reverse holds over 3 seeds of learning, on these test questions"),
        ([1.0, -1.0, 3.0], "not decided by 3 seeds of learning"),
        ([5.0], "not decided: one seed has no interval"),
    ],
)
def test_a_lead_is_judged_by_its_interval(values: list[float], says: str) -> None:
    assert judged(estimate(values)) == says


def _row(seed: int | None, overall: float) -> dict[str, object]:
    return {"seed": seed, "accuracy": {"overall": overall}}


def test_leads_are_paired_by_seed() -> None:
    better = [_row(0, 90.0), _row(1, 80.0)]
    found = lead(better, [_row(1, 79.0), _row(0, 89.0)])
    assert found is not None
    assert (found.mean, found.half_width, found.n) == (1.0, 0.0, 2)
    against_one = lead(better, [_row(0, 85.0)])  # weights' magnitude: the same for every seed
    assert against_one is not None
    assert (against_one.mean, against_one.n) == (0.0, 2)
    assert lead(better, []) is None


def test_erank_is_judged_between_losses_that_differ_in_it_alone() -> None:
    scores = {PAPER: 90.0, TASK_KS: 89.0, BOTH_ALONE: 70.0, KS_ALONE: 67.0}
    rows = [
        {"group": "heads", "name": way, "removed": 0.5, "refit": False, "parameters_left": 0.8, **_row(seed, overall)}
        for way, overall in scores.items()
        for seed in range(3)
    ]
    found = [(claim, told) for claim, told, _ in verdicts(rows) if claim.startswith("Table 2")]
    with_task, without = f"({PAPER} against {TASK_KS})", f"({BOTH_ALONE} against {KS_ALONE})"
    assert [claim.endswith(end) for (claim, _), end in zip(found, (with_task, without), strict=True)] == [True, True]
    assert [told.split(" points")[0] for _, told in found] == ["1.0 ± 0.0", "3.0 ± 0.0"]


# -- the work file


def test_rows_come_back_and_a_torn_line_does_not(tmp_path: Path) -> None:
    path, identity = tmp_path / "deep" / "rows.jsonl", {"steps": 3, "removed": (0.25, 0.5)}
    work = WorkFile(path, identity)
    work.append({"name": "a", "seed": 0}, {"value": 1.5})
    with path.open("a") as file:
        file.write('{"key": "torn')
    again = WorkFile(path, identity)
    assert again.row({"seed": 0, "name": "a"}) == {"value": 1.5}
    assert again.row({"name": "a", "seed": 1}) is None
    again.append({"name": "b"}, {"value": 2})
    assert WorkFile(path, identity).row({"name": "b"}) == {"value": 2}


def test_other_options_and_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    WorkFile(path, {"steps": 3})
    with pytest.raises(InfopruneError, match=r"another steps \(3, now 4\); give the same options"):
        WorkFile(path, {"steps": 4})
    with pytest.raises(InfopruneError, match="another scenes"):
        WorkFile(path, {"steps": 3, "scenes": 7})
    head, row = '{"identity": {"steps": 3}}\n', '{"key": "k", "row": {}}\n'
    for text, said in (
        ('{"a": 1}\n', "no work file"),
        ('["identity"]\n', "no work file"),
        ("", "no work file"),
        ("nonsense\n", "is damaged"),
        (head + row + '{"row": {"value": 1}}\n', r"is damaged \(line 3 is no row with its key\); delete it"),
        (head + '["key", "row"]\n' + row, "line 2 is no row"),
        (head + '{"key": "k", "row": 7}\n', "line 2 is no row"),
        (head + '{"key": ["k"], "row": {}}\n', "line 2 is no row"),
    ):
        path.write_text(text)
        with pytest.raises(InfopruneError, match=said):
            WorkFile(path, {"steps": 3})
        assert path.read_text() == text


def test_a_row_that_is_no_json_is_not_kept(tmp_path: Path) -> None:
    work = WorkFile(tmp_path / "rows.jsonl", {})
    with pytest.raises(ValueError, match="JSON"):
        work.append({"name": "a"}, {"value": float("nan")})
    assert WorkFile(tmp_path / "rows.jsonl", {}).row({"name": "a"}) is None


# -- what is compared


def test_question_types_partition_the_handwriting_questions(tmp_path: Path) -> None:
    write_handwriting(tmp_path / "scenes", "test", scenes=25, seed=5)
    dataset = read_handwriting(tmp_path / "scenes")
    rng = np.random.default_rng(0)
    right = rng.random(len(dataset)) < 0.7
    answers = [
        Answer(e.question_id, e.majority_answer if good else "?") for e, good in zip(dataset, right, strict=True)
    ]
    found = by_type(dataset, answers)
    assert found.keys() == QUESTION_TYPES
    assert {name: kind["questions"] for name, kind in found.items()} == Counter(e.question_type for e in dataset)
    assert sum(kind["questions"] for kind in found.values()) == len(dataset)
    hits = sum(kind["accuracy"] * kind["questions"] / 100 for kind in found.values())
    assert hits == pytest.approx(right.sum(), abs=0.01)


def test_a_question_without_a_type_counts_under_its_family() -> None:
    assert type_of(VQAExample("1", "1", Path("x.png"), "What?", ("a",), "text")) == "text"


def test_the_knee_is_the_smallest_form_level_with_the_best() -> None:
    def bend(*points: tuple[float, float]) -> float:
        return float(knee([{"parameters_left": x, "accuracy": {"overall": y}} for x, y in points])["parameters_left"])

    assert bend((0.9, 97.0), (0.5, 96.2), (0.4, 90.0)) == 0.5
    assert bend((0.3, 35.0), (0.2, 35.4)) == 0.2


def test_eulers_residual_is_nought_for_balanced_pulls_and_one_for_agreeing_ones() -> None:
    zeta = torch.rand(3, 5, dtype=torch.float64) + 0.1
    pulls = torch.randn(3, 5, dtype=torch.float64)
    balanced = pulls - pulls.mean(-1, keepdim=True)
    assert euler_residual(zeta, balanced / zeta) < 1e-12
    assert euler_residual(zeta, pulls.abs() / zeta) == pytest.approx(1.0)
    assert euler_residual(zeta, torch.zeros_like(zeta)) == 0


@pytest.mark.parametrize("style", STYLES)
def test_a_restyled_data_set_asks_the_same_of_other_pictures(tmp_path: Path, style: str) -> None:
    write_handwriting(tmp_path / "scenes", "test", scenes=4, seed=3)
    dataset = read_handwriting(tmp_path / "scenes")
    assert restyled(dataset, PLAIN, tmp_path / "none") is dataset
    shifted = restyled(dataset, style, tmp_path / "shifted")
    again = restyled(VQADataset(dataset.examples[::-1]), style, tmp_path / "again")
    for before, after, repeated in zip(dataset, shifted, reversed(again), strict=True):
        assert (before.question, before.answers, before.question_type) == (
            after.question,
            after.answers,
            after.question_type,
        )
        pictures = [np.asarray(Image.open(e.image_path)).astype(int) for e in (before, after, repeated)]
        assert pictures[0].shape == pictures[1].shape
        assert np.abs(pictures[0] - pictures[1]).mean() > 10
        assert np.array_equal(pictures[1], pictures[2])  # whatever came before it
    kept = shifted[0].image_path.stat().st_mtime_ns
    assert restyled(dataset, style, tmp_path / "shifted")[0].image_path.stat().st_mtime_ns == kept


# -- options and the estimate


def test_what_is_learnt_once_is_estimated_once() -> None:
    shared = [Job({"name": i}, dict, Cost(10, 200, 200, 1, "zeta, seed 0")) for i in range(6)]
    single = [Job({"name": "x"}, dict, Cost(steps=50, task_steps=5))]
    rates = Rates(question=0.1, step=0.5, task_step=2.0, fit=3.0)
    assert rates.seconds(shared + single) == pytest.approx(6 + 0.5 * 250 + 2 * 205 + 18)


def test_quick_options_are_some_of_the_full_ones() -> None:
    full, quick = Options(), Options().quick()
    for name in ("removed", "epsilons", "ranks", "neurons", "linear_shares"):
        assert 0 < len(getattr(quick, name)) < len(getattr(full, name))
        assert set(getattr(quick, name)) < set(getattr(full, name))
    assert json.dumps(full.identity()) != json.dumps(quick.identity())
    assert Options(micro_batch=2).identity() == full.identity()  # memory is no option that a row depends on
    with pytest.raises(InfopruneError, match="seeds must be at least 1"):
        Options(seeds=0)
