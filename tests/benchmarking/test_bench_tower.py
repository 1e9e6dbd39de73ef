"""``infoprune bench tower`` on a tiny input, for real: the 7B's sizes, one block."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from infoprune_rt.benchmarking.cpu_tower import peers, run
from infoprune_rt.benchmarking.cpu_tower.attention import OURS as OUR_ATTENTION
from infoprune_rt.benchmarking.cpu_tower.attention import SDPA
from infoprune_rt.benchmarking.cpu_tower.cases import Case, Subject
from infoprune_rt.benchmarking.cpu_tower.contenders import CONTENDERS, OPENVINO, OUR_DENSE, OURS, PLAIN, Contender
from infoprune_rt.cli import main

COLUMNS = {"name", "patches", "images", "blocks", "threads", "dtype", "p50_ms", "p90_ms", "max_error", "checked"}
COLUMNS |= {"peak_bytes", "rounds", "gemm_tflops", "share_of_gemm_rate"}
Bench = Callable[..., tuple[int, str, dict[str, Any]]]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> Bench:
    """Runs the command on two tiny images with these contenders; status, what was printed, the file's content."""
    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setattr(run, "cases", lambda quick, threads: [Case(((4, 4), (2, 6)), threads, 1)])
    monkeypatch.setattr(run, "attention_case", lambda threads: Case(((6, 6),), threads, 0))

    def bench(chosen: list[Contender]) -> tuple[int, str, dict[str, Any]]:
        monkeypatch.setattr(run, "contenders", lambda case, quick: chosen)
        path = tmp_path / "deep" / "result.json"
        with pytest.raises(SystemExit) as end:
            main(["bench", "tower", "--rounds", "1", "--json", str(path)])
        assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
        assert isinstance(end.value.code, int)
        return end.value.code, capfd.readouterr().out, json.loads(path.read_text())

    return bench


def named(*names: str) -> list[Contender]:
    return [c for c in CONTENDERS if c.name in names]


def test_everyone_on_a_tiny_input(bench: Bench) -> None:
    before = torch.get_num_threads()
    status, printed, result = bench(list(CONTENDERS))
    installed = [c.name for c in CONTENDERS if not peers.missing(c.needs)]
    assert (status, result["sound"], result["failures"]) == (0, True, [])
    assert [row["name"] for row in result["rows"]] == [*installed, SDPA, OUR_ATTENTION]
    for row in result["rows"]:
        assert row.keys() == COLUMNS
        assert row["checked"]
        assert row["p90_ms"] >= row["p50_ms"] > 0
        assert row["name"] in printed
    assert result["gemm_tflops"] > 0
    assert torch.get_num_threads() == before


def test_a_wrong_answer_is_told_and_ends_in_status_1(bench: Bench) -> None:
    def slightly_wrong(subject: Subject) -> Callable[[], Tensor]:
        (right,) = (c.build(subject) for c in named(OURS))
        return lambda: 1.1 * right()

    wrong = [replace(c, build=slightly_wrong) for c in named(OURS)]
    status, printed, result = bench([*named(PLAIN), *wrong])
    assert (status, result["sound"]) == (1, False)
    assert [row["checked"] for row in result["rows"]] == [True, False, True, True]
    assert printed.count("WRONG") == 1


def test_a_contender_that_fails_does_not_take_the_others_along(bench: Bench) -> None:
    def fails(subject: Subject) -> Callable[[], Tensor]:
        raise RuntimeError("no such\ninstruction")

    status, printed, result = bench([Contender("broken", fails), *named(PLAIN)])
    assert (status, result["sound"]) == (1, False)
    (failure,) = result["failures"]
    assert (failure["name"], failure["error"]) == ("broken", "RuntimeError: no such instruction")
    assert "FAILED: broken (28 patches, 2 images, 1 block, " in printed
    assert result["rows"][0]["name"] == PLAIN


def test_a_peer_that_is_not_installed_is_left_out_with_a_word(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    found = peers.find_spec
    monkeypatch.setattr(peers, "find_spec", lambda name: None if name == "openvino" else found(name))
    status, printed, result = bench(named(PLAIN, OPENVINO))
    assert status == 0
    assert OPENVINO not in {row["name"] for row in result["rows"]}
    absent = ", ".join(["openvino", *peers.missing(peers.EXPORTERS)])
    assert f"left out: {OPENVINO}: {absent} not installed; get it with: pip install 'infoprune-rt[bench]'" in printed
    assert result["peers"]["openvino"] is None


def test_nothing_pruned_is_compared_with_transformers_own_tower(bench: Bench) -> None:
    status, _, result = bench(named(OUR_DENSE))
    assert (status, result["rows"][0]["checked"]) == (0, True)


def test_a_file_that_cannot_be_written_is_told_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(run, "cases", lambda quick, threads: pytest.fail("measured"))
    (tmp_path / "file").touch()
    for place, why in ((tmp_path, "is a directory"), (tmp_path / "file" / "x.json", "could not make the directory")):
        with pytest.raises(SystemExit) as end:
            main(["bench", "tower", "--json", str(place)])
        assert end.value.code == 2
        assert why in capfd.readouterr().err
