"""The ablations run whole on a small random model; an interrupted run goes on, with the same options only."""

from __future__ import annotations

import json
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from ablation_subjects import NAME, SMALL, small_subject

from infoprune_rt.benchmarking.ablations import objectives
from infoprune_rt.benchmarking.ablations.captions import caption
from infoprune_rt.benchmarking.ablations.figures import FIGURES, figure_path
from infoprune_rt.benchmarking.ablations.run import STUDIES, run_ablations
from infoprune_rt.benchmarking.ablations.subject import Subject
from infoprune_rt.benchmarking.ablations.tables import TABLES
from infoprune_rt.benchmarking.ablations.verdicts import verdicts
from infoprune_rt.benchmarking.ablations.work_file import WorkFile
from infoprune_rt.cli import main
from infoprune_rt.errors import InfopruneError
from infoprune_rt.pruning import head_training

TOP = {"date", "command", "environment", "model", "questions", "pictures", "options", "rows"}
MEASURED = {"group", "name", "accuracy", "types", "parameters_left", "heads_per_block", "ffn_per_block"}
Interrupted = tuple[Path, dict[str, Any], list[str], list[str]]
ROOT = Path(__file__).parents[2]


class StoppedError(Exception):
    """What ends a run between two rows."""


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Interrupted:
    """A run that was stopped before its fifth row was kept, then repeated: its file and result, which rows each call
    measured, and what was learnt, in order."""
    folder = tmp_path_factory.mktemp("ablations")
    path = folder / "out" / "result.json"
    measured: list[str] = []
    learnt: list[str] = []
    keep, measure, score = WorkFile.append, Subject.measured, objectives.score_heads

    def stop(self: WorkFile, key: Any, row: Any) -> None:
        if len(self._rows) == 4:
            raise StoppedError
        keep(self, key, row)

    def watched(self: Subject, variant: Any, test: Any = None) -> dict[str, Any]:
        measured.append(variant.name)
        return measure(self, variant, test)

    def scored(method: str, *args: Any, **kwargs: Any) -> Any:
        learnt.append(method + "|" + str(args[4]))
        return score(method, *args, **kwargs)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Subject, "measured", watched)
        patch.setattr(objectives, "score_heads", scored)
        patch.setattr(head_training, "plot", lambda *_: None)  # a second each, and tested elsewhere
        with pytest.MonkeyPatch.context() as stopping:
            stopping.setattr(WorkFile, "append", stop)
            with pytest.raises(StoppedError):
                run_ablations(small_subject(folder), path, lambda text: None)
        assert not path.exists()
        with pytest.raises(InfopruneError, match=r"another beta \(0.3, now 0.4\)"):
            run_ablations(small_subject(folder, replace(SMALL, beta=0.4)), path, lambda text: None)
        result = run_ablations(small_subject(folder), path, lambda text: None)
    assert not (folder / "work").exists()  # what follows is measured anew
    return path, result, measured, learnt


def test_no_row_is_measured_twice_and_no_score_learnt_twice(
    interrupted: Interrupted,
) -> None:
    _, result, measured, learnt = interrupted
    with_tower = [row for row in result["rows"] if "ffn_sizes" in row]
    assert len(measured) == len(with_tower) + 1  # the one that was stopped before it was kept
    assert len(learnt) == len(set(learnt)) == 7 + 2  # all but those that drive alone; the paper's on two other styles


def test_the_file_holds_every_row_with_the_settings_it_was_measured_by(
    interrupted: Interrupted,
) -> None:
    path, result, _, _ = interrupted
    assert json.loads(path.read_text()) == json.loads(json.dumps(result))
    assert result.keys() == TOP
    assert (result["model"], result["questions"], result["pictures"]) == (NAME, 16, 2)
    assert {row["group"] for row in result["rows"]} == {study.GROUP for study in STUDIES}
    for row in result["rows"]:
        if row["group"] == "gradients":
            norms = row["gradient_task"]
            assert len(norms) == len(row["gradient_erank"]) == SMALL.followed_steps
            assert [norm is None for norm in norms] == [
                "task" not in row["weights"] and step % SMALL.task_every != 0 for step in range(SMALL.followed_steps)
            ]
            assert max(row["euler_erank"] + row["euler_ks"]) < 1e-4
        else:
            assert row.keys() >= MEASURED
            assert sum(kind["questions"] for kind in row["types"].values()) == result["questions"]
            assert 0 < row["parameters_left"] <= 1
    heads = [row for row in result["rows"] if row["group"] == "heads"]
    assert {row["name"] for row in heads} == set(objectives.WAYS)
    assert {sum(row["heads_per_block"]) for row in heads} == {4}  # half of 2 x 4, whatever the way


def test_every_caption_and_picture_names_the_model(
    interrupted: Interrupted,
) -> None:
    path, result, _, _ = interrupted
    for group in FIGURES:
        assert NAME in caption(result, group)
        assert figure_path(path, group).read_bytes().startswith(b"\x89PNG")


def test_tables_have_a_cell_in_every_column(interrupted: Interrupted) -> None:
    _, result, _, _ = interrupted
    for group, make in TABLES.values():
        head, body = make(result["rows"])
        assert body, group
        assert {len(line) for line in body} == {len(head)}
    assert verdicts(result["rows"])
    assert verdicts([]) == []


def test_the_report_shows_tables_pictures_and_verdicts(
    interrupted: Interrupted, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, result, _, _ = interrupted
    report = runpy.run_path(str(ROOT / "benchmarks" / "report.py"))
    text = (ROOT / "docs" / "ablations.md").read_text()
    ours = {name: make for name, (file, make) in report["TABLES"].items() if file == "ablations"}
    assert all(f"<!-- table: {name} -->\n" in text and f"<!-- end: {name} -->\n" in text for name in ours)
    for make in ours.values():
        monkeypatch.setitem(report["ablation"].__globals__, "ROOT", path.parent)
        shown = make(path)
        assert NAME in shown
        assert f"`{result['command']}`" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--limit", "5"], "give --model as well"),
        (["--model", "x", "--data", "q.json"], "give --data and --images"),
        (["--model", "x", "--scenes", "5"], "with --model use --limit"),
    ],
)
def test_options_that_do_not_go_together_are_refused_before_anything_is_loaded(
    words: list[str], said: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["bench", "ablations", *words])
    assert end.value.code == 2
    assert said in capfd.readouterr().err


def test_help_says_what_is_measured(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "ablations", "--help"])
    shown = capfd.readouterr().out
    assert all(study.GROUP in shown for study in STUDIES)
    assert "--test-data" in shown
