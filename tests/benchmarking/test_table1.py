"""Table 1's harness: every row gives the right answer from as many products as the formulas say, or is told apart."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from ablation_subjects import save_small_vlm
from table1_subject import WORK, subject

from infoprune_rt.benchmarking.table1.building import Choice, require_memory
from infoprune_rt.benchmarking.table1.checks import check
from infoprune_rt.benchmarking.table1.command import Questions, chosen_workloads, questions, result_file
from infoprune_rt.benchmarking.table1.costs import costs
from infoprune_rt.benchmarking.table1.goals import goals, speedup
from infoprune_rt.benchmarking.table1.masked import masked_tower
from infoprune_rt.benchmarking.table1.measuring import measure, prepare
from infoprune_rt.benchmarking.table1.methods import methods
from infoprune_rt.benchmarking.table1.page import page
from infoprune_rt.benchmarking.table1.paper import PRINTED
from infoprune_rt.benchmarking.table1.presets import bytes_of, published_config
from infoprune_rt.benchmarking.table1.profiling import profiles
from infoprune_rt.benchmarking.table1.run import Options, _Kept, table1
from infoprune_rt.benchmarking.table1.show import HEADS, base_of, cells, markdown, tables
from infoprune_rt.benchmarking.table1.wider import in_wider
from infoprune_rt.compression import compress_checkpoint, make_plan
from infoprune_rt.demo.handwriting import write_handwriting
from infoprune_rt.errors import InfopruneError
from infoprune_rt.model_loading import calibration_batches, describe_source
from infoprune_rt.plan import FFNPlan

FIELDS = (
    "method execution engine workload parameters flops flops_yopo tower_p50_ms prefill_p50_ms first_token_p50_ms "
    "peak_bytes accuracy checked"
)
ROWS = methods("csrc")


def quiet(told: str) -> None:
    pass


@pytest.fixture(scope="module")
def rows() -> list[dict[str, Any]]:
    return measure(subject(torch.bfloat16), ROWS, WORK, new_tokens=2, rounds=1, step=quiet)


def test_every_row_is_right_and_complete(rows: list[dict[str, Any]]) -> None:
    assert [(r["method"], r["execution"], r["engine"]) for r in rows] == [(m.name, m.execution, m.engine) for m in ROWS]
    for row in rows:
        assert set(FIELDS.split()) <= row.keys()
        assert row["checked"], row
        assert row["flops"] == row["flops_counted"]
        assert 0 < row["tower_p50_ms"] < row["first_token_p50_ms"] < row["generate_p50_ms"]
        json.dumps(row, allow_nan=False)


def test_skipping_costs_less_and_masking_as_much_as_dense(rows: list[dict[str, Any]]) -> None:
    by_name = {(r["method"], r["execution"]): r for r in rows}
    dense = by_name["dense", "whole"]
    assert by_name["YOPO", "as released"]["flops"] == dense["flops"]
    masked = by_name["InfoPrune", "masked"]
    assert by_name["InfoPrune + YOPO", "masked"]["flops"] == masked["flops"]
    assert masked["flops"] < dense["flops"]  # by the FFNs that became linear; all heads are computed
    both, ours, yopo = (by_name[name, "compact"] for name in ("InfoPrune + YOPO", "InfoPrune", "YOPO"))
    assert ours["flops"] < masked["flops"]
    assert both["flops"] < min(ours["flops"], yopo["flops"]) < max(ours["flops"], yopo["flops"]) < dense["flops"]
    assert dense["flops"] - both["flops"] == 2 * dense["flops"] - ours["flops"] - yopo["flops"]  # different halves
    assert yopo["flops_yopo"] == by_name["YOPO", "as released"]["flops_yopo"] < dense["flops_yopo"]
    assert ours["flops_yopo"] == dense["flops_yopo"]  # YOPO does not count the tower
    assert ours["parameters"] < dense["parameters"] == yopo["parameters"]


@torch.no_grad()
def test_a_wrong_answer_is_found_and_gets_no_speedup() -> None:
    spoilt = subject()
    spoilt.compact.blocks[0].out.weight.mul_(1.1)
    method = next(m for m in ROWS if m.tower == "plain")
    spoilt.tower(next(m for m in ROWS if m.tower == "masked"))  # made of the spoilt weights, as all will be
    spoilt.tower(method).blocks[0].out.weight.mul_(1.1)  # type: ignore[union-attr, operator, index]
    chosen = [m for m in ROWS if m.tower in ("masked", "plain", "dense") and m.yopo is None]
    found = measure(spoilt, chosen, WORK, new_tokens=1, rounds=1, step=quiet)
    right = {row["engine"]: row["checked"] for row in found if row["method"] == "InfoPrune"}
    assert right == {"sdpa": True, "plain PyTorch": False}
    wrong = next(row for row in found if row["engine"] == "plain PyTorch")
    assert speedup(wrong, base_of(found)) is None
    assert "WRONG ANSWER" in cells(wrong, base_of(found))
    assert "WRONG ANSWER" in markdown({"rows": found, "printed_in_the_paper": PRINTED})
    assert not goals(found)


@pytest.mark.parametrize("wrong", [torch.zeros(3), torch.tensor([1.0, torch.nan]), torch.tensor([torch.inf, 1.0])])
def test_no_answer_is_never_right(wrong: torch.Tensor) -> None:
    sound = torch.ones(2)
    assert not check(wrong, sound, sound, torch.bfloat16).right
    assert not check(sound, wrong, sound, torch.bfloat16).right
    assert check(sound, sound, sound, torch.bfloat16).right


@torch.no_grad()
def test_the_masked_tower_is_the_compact_one() -> None:
    one = subject()
    inputs, _ = prepare(one, WORK)
    pixels, grid = inputs["pixel_values"].double(), inputs["image_grid_thw"]
    compact = copy.deepcopy(one.compact).double()
    masked = masked_tower(copy.deepcopy(one.dense).double(), compact, one.adapter)
    torch.testing.assert_close(masked(pixels, grid).pooler_output, compact(pixels, grid).pooler_output)


@torch.no_grad()
def test_float32_is_what_converted_weights_give_and_leaves_no_trace() -> None:
    one = subject(torch.bfloat16)
    inputs, _ = prepare(one, WORK)
    before = one.model(**inputs).logits
    with in_wider(one.model, torch.bfloat16):
        mine = one.model(**inputs).logits
    assert torch.equal(one.model(**inputs).logits, before)
    assert not any("forward" in vars(module) for module in one.model.modules())
    theirs = copy.deepcopy(one.model).float()(**inputs).logits
    assert mine.dtype == torch.float32
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)


def test_the_published_sizes() -> None:
    """By the checkpoints' own parameter counts: 2.2 and 8.3 billion."""
    for name, billions in (("2b", 2.209), ("7b", 8.291)):
        assert bytes_of(published_config(name), torch.bfloat16)[0] / 2e9 == pytest.approx(billions, abs=1e-3)


def test_what_cannot_fit_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infoprune_rt.benchmarking.table1.building.available_bytes", lambda device: 5 << 30)
    told = r"preset 7b needs about 1\d\.\d GiB on cpu \(15\.4 of them weights\), but only 5\.0 GiB are available"
    with pytest.raises(InfopruneError, match=told):
        require_memory("7b", published_config("7b"), torch.bfloat16, torch.device("cpu"))


def test_tables_and_pages_say_everything(rows: list[dict[str, Any]]) -> None:
    one = subject()
    result = {
        "date": "2026-01-01",
        "command": "infoprune bench table1",
        "environment": {"cpu": "a CPU", "cores": 2, "versions": {"torch": "2", "transformers": "5"}},
        "options": {"rounds": 1},
        "model": {"weights": "random", "dtype": "bfloat16"},
        "rows": rows,
        "goals": [goal.to_dict() for goal in goals(rows)],
        "printed_in_the_paper": PRINTED,
        "profiles": profiles(one, ROWS, WORK, quiet),
    }
    assert len(tables(result)[0].rows) == len(ROWS)
    text, html = markdown(result), page(result)
    for told in (*HEADS, "YOPO (printed in the paper)", "48.02", "328"):
        assert told in text
        assert told in html
    assert html.count("data:image/png;base64,") == 2
    assert "http" not in html
    assert {name.split(",")[0] for name in result["profiles"]} == {"dense", "YOPO"}
    for operators in result["profiles"].values():
        assert 0 < sum(each["share"] for each in operators) <= 1.001


def options(**changes: Any) -> Options:
    found = {"workloads": ("coco", "mixed"), "new_tokens": 8, "rounds": 3} | changes
    return Options(Choice("2b", None, None, "nominal_25", torch.device("cpu")), **found)


def test_a_run_goes_on_with_the_workloads_that_are_missing(tmp_path: Path) -> None:
    path = tmp_path / "table1.json.partial"
    _Kept(path, options().to_dict()).add("coco", [{"method": "dense"}])
    assert _Kept(path, options().to_dict()).rows == {"coco": [{"method": "dense"}]}
    with pytest.raises(InfopruneError, match="other options, models or questions; give the same ones"):
        _Kept(path, options(rounds=5).to_dict())
    for torn in ('{"run": ', "[]", '{"rows": {}}'):
        path.write_text(torn)
        with pytest.raises(InfopruneError, match="not what an interrupted run leaves; remove it"):
            _Kept(path, options().to_dict())


def test_workloads_and_questions_are_made_sure_of_first(tmp_path: Path) -> None:
    assert chosen_workloads("tiny", None) == ("native",)
    assert chosen_workloads("2b", ["mixed", "coco", "mixed"]) == ("mixed", "coco")
    for preset, wanted, told in (
        ("tiny", ["coco"], "preset tiny takes the workload 'native' alone"),
        ("7b", ["native"], "has no use for 'native'"),
        (None, ["photo"], "unknown workload 'photo'; known are native, coco"),
    ):
        with pytest.raises(InfopruneError, match=told):
            chosen_workloads(preset, wanted)
    cpu = torch.device("cpu")
    with pytest.raises(InfopruneError, match="--model and --compact go together"):
        questions(Choice(None, tmp_path, None, "nominal_25", cpu), None, None, None, 10)
    with pytest.raises(InfopruneError, match="--data needs --model"):
        questions(Choice("2b", None, None, "nominal_25", cpu), [tmp_path], tmp_path, None, 10)
    with pytest.raises(InfopruneError, match="--images and --annotations belong to --data"):
        questions(Choice("2b", None, None, "nominal_25", cpu), None, tmp_path, None, 10)
    assert questions(Choice("2b", None, None, "nominal_25", cpu), None, None, None, 10) == Questions()


def test_flops_at_the_published_size_are_the_published_formula() -> None:
    """method.md section 5, Qwen2-VL-7B: tower 1.284e9 N + 163840 N^2, language model 13.05e9 T + 401408 T^2."""
    with torch.device("meta"):
        from transformers import Qwen2VLForConditionalGeneration

        model: Any = Qwen2VLForConditionalGeneration(published_config("7b"))
    one = subject()
    one.model, one.dense = model, one.adapter.tower_of(model)
    grid, text = torch.tensor([[1, 34, 46]]), 26
    ids = torch.full((1, 391 + text), 5)
    ids[0, 3:394] = model.config.image_token_id
    found = costs(one, ROWS[0], {"input_ids": ids, "image_grid_thw": grid})
    n, t = 1564, 391 + text
    head = 2 * 3584 * 152064
    assert found.flops - head == pytest.approx(1.284e9 * n + 163840 * n**2 + 13.05e9 * t + 401408 * t**2, rel=2e-3)


class _BrokenOffError(Exception):
    """As a kill would."""


def test_a_checkpoint_from_end_to_end_and_broken_off_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A saved model, what compress makes of it, and questions in official files; stopped after the first workload."""
    save_small_vlm(tmp_path / "dense")
    source = describe_source(tmp_path / "dense")
    plan = make_plan(source.architecture, source.shape, ffn=FFNPlan(mode="rrr", size=16), refit=False, sequential=False)
    write_handwriting(tmp_path / "data", "test", 2, seed=2)
    batches = calibration_batches(source, tmp_path / "data" / "images", 2, 2, "refuse")
    compress_checkpoint(tmp_path / "dense", tmp_path / "compact", plan, batches)
    choice = Choice(None, tmp_path / "dense", tmp_path / "compact", "nominal_25", torch.device("cpu"))
    asked = questions(choice, [tmp_path / "data" / "gqa_handwriting_questions.json"], tmp_path / "data/images", None, 3)
    assert asked.scored is not None
    assert asked.calibration is not None
    wanted = Options(choice, ("coco", "mixed"), new_tokens=2, rounds=1)
    measured: list[str] = []

    def once(*args: Any, **kwargs: Any) -> Any:
        if measured and measured[-1] == "stop":
            raise _BrokenOffError
        measured.append("stop" if not measured else args[2].name)
        return measure(*args, **kwargs)

    monkeypatch.setattr("infoprune_rt.benchmarking.table1.run.measure", once)
    out = tmp_path / "table1.json"
    with pytest.raises(_BrokenOffError):
        table1(wanted, out, asked, quiet)
    assert not out.exists()
    with pytest.raises(InfopruneError, match="other options, models or questions"):
        table1(wanted, out, Questions(), quiet)
    measured[:] = ["go on"]
    result = table1(wanted, out, asked, quiet)
    assert measured == ["go on", "mixed"]
    assert [path.name for path in tmp_path.glob("table1*")] == ["table1.json"]
    assert json.loads(json.dumps(result)) == json.loads(out.read_text())
    assert result["sound"]
    assert len(result["rows"]) == 2 * len(ROWS)
    scored = {row["engine"]: row["accuracy"] for row in result["rows"]}
    assert scored.pop("torch.compile") is None
    assert all(0 <= accuracy["overall"] <= 100 for accuracy in scored.values())


def test_a_result_has_a_name_of_its_own(tmp_path: Path) -> None:
    for wrong in (tmp_path / "table1.md", tmp_path):
        with pytest.raises(InfopruneError, match="must be a file that ends in"):
            result_file(wrong)
