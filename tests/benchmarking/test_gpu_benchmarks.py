"""The GPU's benchmarks, bodies and all, on the CPU at toy sizes; and what they say where there is no GPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from operator_cases import DEFINITIONS, attention_case

from infoprune_rt.benchmarking.cpu_tower.cases import Case
from infoprune_rt.benchmarking.gpu import budget, device, operators, run_operators, towers
from infoprune_rt.benchmarking.gpu.attention_peers import SDPA_BACKENDS, exact_attention
from infoprune_rt.benchmarking.gpu.measuring import Contender, Findings, rows_of, with_rates
from infoprune_rt.benchmarking.gpu.operators import OURS, Question
from infoprune_rt.benchmarking.gpu.run_operators import bench_operators
from infoprune_rt.benchmarking.gpu.run_towers import bench_towers
from infoprune_rt.benchmarking.gpu.timing import Timed
from infoprune_rt.errors import InfopruneError
from infoprune_rt.ops import triton_backend

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]
COLUMNS = {"operator", "patches", "name", "ours", "dtype", "max_error", "checked", "rounds", "p50_us", "p90_us"}
RATES = {"tflops", "gb_per_s", "floor_us", "share_of_floor"}
needs_triton = pytest.mark.skipif(triton_backend.missing() is not None, reason="triton is not installed")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


def toy_questions() -> list[Question]:
    return [
        operators.attention_question([20, 1, 13], 3, 16),
        operators.ffn_question(30, 8, 64),
        operators.qkv_question(30, 3, 64, 16),
        operators.projection_question(30, 3, 64, 16),
    ]


def bench(path: Path, questions: list[Question], seconds: float = 1000) -> dict[str, Any]:
    result = bench_operators(path / "deep" / "result.json", CPU, seconds, questions, rounds=2)
    assert json.loads((path / "deep" / "result.json").read_text()) == result
    return result


@needs_triton
def test_operators_on_the_cpu(tmp_path: Path) -> None:
    result = bench(tmp_path, toy_questions())
    assert result["sound"]
    for row in result["rows"]:
        assert row.keys() >= COLUMNS | RATES
        assert row["checked"]
        assert row["p90_us"] >= row["p50_us"] > 0
        assert row["tflops"] > 0
    named = {row["name"] for row in result["rows"]} | {failure["name"] for failure in result["failures"]}
    assert named >= {OURS, operators.TWO_PRODUCTS, operators.ONE_PRODUCT, operators.PROJECTION, *SDPA_BACKENDS}
    assert not any(failure["ours"] for failure in result["failures"])


@needs_triton
def test_a_wrong_answer_is_not_timed_and_only_ours_is_a_fault(tmp_path: Path) -> None:
    (question,) = toy_questions()[1:2]

    def wrong(build: operators.Builder, args: operators.Args) -> Any:
        run = build(args)
        return lambda: 1.1 * run()

    for name, sound in ((OURS, False), (operators.TWO_PRODUCTS, True)):
        changed = {**question.contenders, name: partial(wrong, question.contenders[name])}
        result = bench(tmp_path, [replace(question, contenders=changed)])
        rows = {row["name"]: row for row in result["rows"]}
        assert result["sound"] == sound
        assert not rows[name]["checked"]
        assert rows[name]["p50_us"] is rows[name]["tflops"] is None


@needs_triton
def test_what_raises_is_recorded_and_the_rest_goes_on(tmp_path: Path) -> None:
    (question,) = toy_questions()[1:2]

    def broken(args: operators.Args) -> Any:
        raise RuntimeError("no such\ninstruction")

    result = bench(tmp_path, [replace(question, contenders={**question.contenders, OURS: broken})])
    assert not result["sound"]
    assert [failure["error"] for failure in result["failures"]] == ["RuntimeError: no such instruction"]
    assert [row["name"] for row in result["rows"]] == [operators.TWO_PRODUCTS]


@needs_triton
def test_what_does_not_fit_in_the_time_is_left_out_by_name(tmp_path: Path) -> None:
    result = bench(tmp_path, toy_questions(), seconds=run_operators.FIRST_SECONDS / 2)
    assert result["rows"] == []
    assert not result["sound"]
    assert {item["name"] for item in result["left_out"]} >= {str(question) for question in toy_questions()}


def test_attention_is_checked_against_its_definition() -> None:
    args = attention_case([5, 0, 9], 3, 8)
    assert torch.allclose(exact_attention(*args), DEFINITIONS["attention"](*args), atol=1e-12)


def test_the_questions_are_those_that_were_asked() -> None:
    sizes = [question.case for question in operators.questions()]
    attention = {(q["patches"], q["heads"]) for q in sizes if q["operator"] == "attention" and q["images"] == 1}
    assert attention == {(tokens, heads) for tokens in (1564, 4096, 12100) for heads in (8, 5)}
    ranks = {(q["patches"], q["rank"]) for q in sizes if q["operator"] == "ffn_lowrank"}
    assert ranks == {(tokens, rank) for tokens in (1564, 4096) for rank in (64, 128, 256, 384, 512, 640)}
    assert {q["operator"] for q in sizes} == {"attention", "ffn_lowrank", "norm_qkv_rope", "linear_residual"}
    assert len({str(question) for question in operators.questions()}) == len(sizes)


@needs_triton
def test_a_tower_on_the_cpu(tmp_path: Path) -> None:
    cases = [Case(((4, 6),), 1, blocks=1), Case(((2, 2), (4, 2)), 1, blocks=1)]
    names = (towers.EAGER, towers.DENSE)
    result = bench_towers(tmp_path / "tower.json", CPU, 1000, cases, names, rounds=2)
    assert result["sound"]
    assert (result["failures"], result["left_out"], result["graphs"]) == ([], [], None)
    where = [(row["patches"], row["images"], row["name"]) for row in result["rows"]]
    assert where == [(24, 1, names[0]), (24, 1, names[1]), (12, 2, names[0]), (12, 2, names[1])]
    assert all(row["p50_us"] > 0 and row["checked"] for row in result["rows"])


@torch.no_grad()
def test_what_the_compiler_is_given_is_the_tower() -> None:
    packed = towers.Pack.on(CPU, Case(((4, 6), (2, 2)), 1, blocks=2))
    made = towers.Towers(CPU, 2)
    exact = made.exact(packed.pixels[0], packed.grid).pooler_output
    assert torch.allclose(towers.PlainTower(made.exact, packed)(packed.pixels[0]), exact, atol=1e-4)


@needs_triton
def test_rates_and_floors_are_those_of_the_work() -> None:
    from infoprune_kernels.roofline import CHIPS, ffn_lowrank

    work = ffn_lowrank(4096, 1280, 128)
    row = with_rates({"p50_us": 10.0}, work, CHIPS[-1])
    assert row["tflops"] == pytest.approx(work.flops / 10e-6 / 1e12)
    assert row["gb_per_s"] == pytest.approx(work.bytes / 10e-6 / 1e9)
    assert row["share_of_floor"] == pytest.approx(work.floor(CHIPS[-1]) / 10e-6)
    assert with_rates({"p50_us": None}, work, None)["share_of_floor"] is None


@needs_triton
@pytest.mark.parametrize(
    ("name", "chip"),
    [("NVIDIA H200", "H200"), ("NVIDIA A100-SXM4-80GB", "A800"), ("NVIDIA H100 80GB HBM3", "H100"), ("Tesla T4", None)],
)
def test_a_device_is_measured_by_its_own_chip(name: str, chip: str | None) -> None:
    found = device.chip_of(name)
    assert (found and found.name) == chip


def test_rows_are_of_those_who_were_right() -> None:
    timed = Timed([lambda: None])
    contenders = {
        "a": Contender(timed, 0.001, True),
        "b": Contender(timed, None, False),
        "c": Contender(timed, 1, False),
    }
    rows = rows_of({"operator": "x"}, contenders, CPU, rounds=3)
    assert [(row["name"], row["checked"], row["rounds"]) for row in rows] == [
        ("a", True, 3),
        ("b", False, 0),
        ("c", False, 0),
    ]
    assert Findings(rows).sound
    assert not Findings([]).sound


def test_a_pace_lets_begin_what_the_longest_so_far_would_fit_in() -> None:
    now = [0.0]
    ten = budget.Budget(10, clock=lambda: now[0])
    pace = budget.Pace(ten, first=4)
    assert pace.allows()
    for seconds, allowed in ((3, True), (2, True), (3, False)):
        with pace.timed():
            now[0] += seconds
        assert pace.allows() is allowed
    assert not budget.Pace(ten, first=4).allows()
    now[0] = 20
    assert ten.left == 0


def test_what_takes_too_long_is_ended_in_its_midst() -> None:
    with pytest.raises(InfopruneError, match="sleeping did not end within 0 s"), budget.ended_after(0.05, "sleeping"):
        time.sleep(60)
    with budget.ended_after(100, "nothing"):
        pass


def test_what_swallows_the_end_of_its_time_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budget, "AGAIN", 0.1)
    before, swallowed = signal.getsignal(signal.SIGALRM), []

    def compiling() -> None:
        for _ in range(2):
            try:
                time.sleep(60)
            except InfopruneError as error:
                swallowed.append(error)
        time.sleep(60)

    with pytest.raises(InfopruneError, match="compiling did not end"), budget.ended_after(0.05, "compiling"):
        compiling()
    assert len(swallowed) == 2
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    assert signal.getsignal(signal.SIGALRM) is before


@without_gpu
@pytest.mark.parametrize("script", ["gpu.py", "gpu_operators.py", "gpu_tower.py"])
def test_without_a_gpu_they_say_so_in_one_sentence(script: str) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    command = [sys.executable, str(ROOT / "benchmarks" / script)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr.splitlines()[-1].startswith("this measures a GPU, and PyTorch finds no CUDA device here; run it")


@without_gpu
def test_the_gpus_tests_are_skipped_for_one_reason() -> None:
    command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-q", "-rs", "-p", "no:cacheprovider"]
    run = subprocess.run([*command, str(ROOT / "tests" / "gpu")], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout
    assert {line.rpartition(": ")[2] for line in run.stdout.splitlines() if line.startswith("SKIPPED")} == {
        "needs a CUDA device"
    }
