"""The ablations run whole on a small random model; an interrupted run goes on, with the same options only."""

from __future__ import annotations

import json
import runpy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from ablation_subjects import BLOCKS, HEADS, SCENES, SMALL, draw_scenes, save_small_vlm

from infoprune_rt import model_loading
from infoprune_rt.benchmarking.ablations import objectives
from infoprune_rt.benchmarking.ablations.captions import caption
from infoprune_rt.benchmarking.ablations.figures import FIGURES, figure_path
from infoprune_rt.benchmarking.ablations.options import Options
from infoprune_rt.benchmarking.ablations.run import STUDIES
from infoprune_rt.benchmarking.ablations.subject import Subject
from infoprune_rt.benchmarking.ablations.tables import TABLES
from infoprune_rt.benchmarking.ablations.verdicts import verdicts
from infoprune_rt.benchmarking.ablations.work_file import WorkFile
from infoprune_rt.cli import main
from infoprune_rt.evaluation import weight_memory
from infoprune_rt.pruning import head_training
from infoprune_rt.pruning.head_training import SCORES

TOP = {"date", "command", "environment", "model", "questions", "pictures", "options", "rows"}
MEASURED = {"group", "name", "accuracy", "types", "parameters_left", "heads_per_block", "ffn_per_block"}
ROOT = Path(__file__).parents[2]


class StoppedError(Exception):
    """What ends a run between two rows."""


@dataclass
class Run:
    """A command that was stopped before its fifth row was kept, refused with another seed count, and repeated."""

    path: Path
    name: str  # of the model
    measured: list[str] = field(default_factory=list)  # by all calls, in order
    learnt: list[str] = field(default_factory=list)
    outlived: list[Path] = field(default_factory=list)  # of what lay in the work folder without rows

    @property
    def result(self) -> dict[str, Any]:
        """The file's content."""
        found: dict[str, Any] = json.loads(self.path.read_text())
        return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("ablations")
    model, work = folder / "model", folder / "work"
    run = Run(folder / "out" / "result.json", str(model))
    save_small_vlm(model)
    strangers = [work / "heads" / "plain" / "random-0" / SCORES, work / "pictures" / "test-noisy" / "0.png"]
    for file in strangers:  # left by a run whose rows were deleted
        file.parent.mkdir(parents=True)
        file.touch()
    words = ["bench", "ablations", "--quick", "--model", str(model), *draw_scenes(folder)]
    words += ["--json", str(run.path), "--work", str(work)]
    keep, measure, score = WorkFile.append, Subject.measured, objectives.score_heads

    def stop(self: WorkFile, key: Any, row: Any) -> None:
        if len(self._rows) == 4:
            raise StoppedError
        keep(self, key, row)

    def watched(self: Subject, variant: Any, test: Any = None) -> dict[str, Any]:
        run.measured.append(variant.name)
        return measure(self, variant, test)

    def scored(*args: Any) -> Any:
        run.learnt.append(f"{args[0]} {args[5]}")
        return score(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Options, "quick", lambda self: SMALL)
        patch.setattr(Subject, "measured", watched)
        patch.setattr(objectives, "score_heads", scored)
        patch.setattr(head_training, "plot", lambda *_: None)  # a second each, and tested elsewhere
        with pytest.MonkeyPatch.context() as stopping:
            stopping.setattr(WorkFile, "append", stop)
            with pytest.raises(StoppedError):
                main(words)
        assert not run.path.exists()
        run.outlived = [file for file in strangers if file.exists()]
        for more, status in ((["--seeds", "2"], 2), ([], 0)):
            with pytest.raises(SystemExit) as end:
                main([*words, *more])
            assert end.value.code == status
    assert not work.exists()  # what follows is measured anew
    return run


def test_no_row_is_measured_twice_and_no_score_learnt_twice(run: Run) -> None:
    with_tower = [row for row in run.result["rows"] if "ffn_sizes" in row]
    assert len(run.measured) == len(with_tower) + 1  # the one that was stopped before it was kept
    # All ways but those that drive alone, and the paper's objective on two other styles.
    assert len(run.learnt) == len(set(run.learnt)) == 7 + 2


def test_scores_and_pictures_without_rows_are_not_used(run: Run) -> None:
    assert run.outlived == []
    assert sum(way.startswith("random ") for way in run.learnt) == 1


def test_the_file_holds_every_row_with_the_settings_it_was_measured_by(run: Run) -> None:
    result = run.result
    assert result.keys() == TOP
    assert (result["model"], result["questions"], result["pictures"]) == (run.name, 8 * SCENES, SCENES)
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
    assert {sum(row["heads_per_block"]) for row in heads} == {BLOCKS * HEADS // 2}  # whatever the way


def test_every_caption_and_picture_names_the_model(run: Run) -> None:
    path, result = run.path, run.result
    for group in FIGURES:
        assert run.name in caption(result, group)
        assert figure_path(path, group).read_bytes().startswith(b"\x89PNG")


def test_tables_have_a_cell_in_every_column(run: Run) -> None:
    result = run.result
    for group, make in TABLES.values():
        head, body = make(result["rows"])
        assert body, group
        assert {len(line) for line in body} == {len(head)}
    assert verdicts(result["rows"])
    assert verdicts([]) == []


def test_the_report_shows_tables_pictures_and_verdicts(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    path, result = run.path, run.result
    report = runpy.run_path(str(ROOT / "benchmarks" / "report.py"))
    text = (ROOT / "docs" / "ablations.md").read_text()
    ours = {name: make for name, (file, make) in report["TABLES"].items() if file == "ablations"}
    assert all(f"<!-- table: {name} -->\n" in text and f"<!-- end: {name} -->\n" in text for name in ours)
    monkeypatch.setitem(report["ablation"].__globals__, "ROOT", path.parent)
    for make in ours.values():
        shown = make(path)
        assert run.name in shown
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


@pytest.mark.parametrize("which", ["train", "test"])
def test_missing_pictures_are_told_before_anything_is_loaded(
    which: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(model_loading, "load_dense_vlm", lambda *_: pytest.fail("the model was loaded"))
    save_small_vlm(tmp_path / "model")
    words = ["--model", str(tmp_path / "model"), *draw_scenes(tmp_path), "--work", str(tmp_path / "work")]
    lost = max((tmp_path / which / "images").iterdir())
    lost.unlink()
    with pytest.raises(SystemExit) as end:
        main(["bench", "ablations", *words])
    told = " ".join(capfd.readouterr().err.split())
    assert end.value.code == 2
    assert f"{lost.parent} lacks 1 of the {SCENES} pictures that the questions name: " in told
    assert "--on-corrupt" not in told  # evaluate's option; there is none here
    assert not (tmp_path / "work").exists()


def test_weights_that_do_not_fit_are_told_before_they_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(model_loading, "load_dense_vlm", lambda *_: pytest.fail("the model was loaded"))
    monkeypatch.setattr(weight_memory, "available_bytes", lambda _: 1000)
    save_small_vlm(tmp_path / "model")
    with pytest.raises(SystemExit) as end:
        main(["bench", "ablations", "--model", str(tmp_path / "model"), *draw_scenes(tmp_path)])
    assert end.value.code == 2
    assert "but only 0.00 GiB are available" in " ".join(capfd.readouterr().err.split())


def test_help_says_what_is_measured(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["bench", "ablations", "--help"])
    shown = capfd.readouterr().out
    assert all(study.GROUP in shown for study in STUDIES)
    assert "--test-data" in shown
