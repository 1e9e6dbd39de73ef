"""``evaluate --out``: killed, resumed, finished, refused; and what is judged before the model is loaded."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_models import questions_of

from infoprune_rt.evaluation import run, weight_memory
from infoprune_rt.model_loading import load_any_vlm
from infoprune_rt.shards import headers, weight_map

Cli = Callable[..., Any]
OPTIONS = ("--batch-size", "2", "--max-new-tokens", "4")
QUESTIONS = 48


@pytest.fixture
def folder(scenes: Path, tmp_path: Path) -> Path:
    """The scenes, to be spoilt."""
    return Path(shutil.copytree(scenes, tmp_path / "scenes"))


def scores(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name != "resumed"}


def start_and_kill(command: tuple[str, ...], out: Path, lines: int) -> None:
    """Run the command in a process of its own and kill it as soon as its file has so many lines."""
    with subprocess.Popen([sys.executable, "-m", "infoprune_rt", *command], stderr=subprocess.PIPE) as process:
        while not out.exists() or out.read_bytes().count(b"\n") < lines:
            assert process.poll() is None, process.communicate()[1].decode()
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


def test_killed_twice_it_ends_as_if_never_killed(
    cli: Cli, models: dict[str, Path], questions: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("evaluate", str(models["qwen"]), *questions, *OPTIONS)
    expected = cli(*command, "--out", tmp_path / "whole.jsonl", "--json").json()
    out = tmp_path / "killed.jsonl"
    for lines in (6, 17):
        start_and_kill((*command, "--out", str(out)), out, lines)
        assert lines <= out.read_bytes().count(b"\n") < 1 + QUESTIONS
    with out.open("ab") as file:
        file.write(b'{"question_id": "')  # and torn in the middle of a line
    found = cli(*command, "--out", out, "--json").json()
    assert 16 <= found["resumed"] < QUESTIONS
    assert scores(found) == scores(expected) == cli(*command, "--json").json()
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    answered = {(line["family"], line["question_id"]) for line in map(json.loads, out.read_text().splitlines()[1:])}
    assert len(answered) == QUESTIONS

    def load(*_: object) -> None:
        pytest.fail("a finished run needs no model")

    monkeypatch.setattr(run, "load_any_vlm", load)
    again = cli(*command, "--out", out, "--json").json()
    assert (again["resumed"], scores(again)) == (QUESTIONS, scores(expected))
    shown = cli(*command, "--out", out)
    assert f"{QUESTIONS} of them were answered by an earlier run" in shown.out
    assert f"every answer is in {out}" in shown.out


def test_a_run_with_other_options_data_or_model_is_refused(
    cli: Cli, models: dict[str, Path], questions: tuple[str, ...], tmp_path: Path
) -> None:
    out = tmp_path / "out.jsonl"
    command = ("evaluate", models["qwen"], *questions, "--out", out, "--limit", 4)
    cli(*command, "--max-new-tokens", 4, "--json").json()
    assert "max_new_tokens: there 4, here 5" in cli(*command, "--max-new-tokens", 5).sentence()
    told = cli(*command, "--max-new-tokens", 4, "--limit", 5).sentence()
    assert "(questions: there {'files': ['v2_OpenEnded_handwriting_questions.json'," in told
    tuned = Path(shutil.copytree(models["qwen"], tmp_path / "tuned"))
    weights = bytearray((tuned / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tuned / "model.safetensors").write_bytes(weights)
    other = ("evaluate", tuned, *command[2:], "--max-new-tokens", 4)
    assert f"(model: there {{'name': '{models['qwen']}'," in cli(*other).sentence()
    moved = Path(shutil.copytree(models["qwen"], tmp_path / "moved"))
    assert cli("evaluate", moved, *command[2:], "--max-new-tokens", 4, "--json").json()["resumed"] == 4


def test_a_torn_picture_stops_a_run_that_resumes_without_it(
    cli: Cli, models: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    torn = sorted((folder / "images").iterdir())[3]
    torn.write_bytes(torn.read_bytes()[:200])
    out = tmp_path / "out.jsonl"
    command = ("evaluate", models["qwen"], *questions_of(folder), *OPTIONS, "--out", out)
    assert "can't be decoded" in cli(*command).sentence()
    found = cli(*command, "--on-corrupt", "skip", "--json").json()
    assert found["resumed"] > 0
    assert found["skipped"] == 8
    lines = [json.loads(line) for line in out.read_text().splitlines()[1:]]
    skipped = [line for line in lines if line["answer"] is None]
    assert {(line["image"], line["score"]) for line in skipped} == {(torn.name, None)}
    assert all("can't be decoded" in line["why"] for line in skipped)


def test_missing_pictures_are_counted_before_the_model_is_loaded(
    cli: Cli, models: dict[str, Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("evaluate", models["qwen"], *questions_of(folder), "--max-new-tokens", 1)
    pictures = sorted((folder / "images").iterdir())
    pictures[0].unlink()
    assert cli(*command, "--on-corrupt", "skip", "--json").json()["skipped"] == 8
    monkeypatch.setattr(run, "load_any_vlm", lambda *_: pytest.fail("the model was loaded"))
    told = cli(*command).sentence()
    assert f"lacks 1 of the 6 pictures that the questions name: {pictures[0].with_suffix('.jpg').name};" in told
    assert "val2014.zip" in told
    assert "--on-corrupt skip" in told
    for path in pictures[1:]:
        path.unlink()
    told = cli(*command, "--on-corrupt", "skip").sentence()
    assert "lacks 6 of the 6 pictures" in told
    assert ", ...;" in told


def test_missing_data_files_are_told_with_the_official_names(cli: Cli, models: dict[str, Path], scenes: Path) -> None:
    told = cli("evaluate", models["qwen"], "--data", "absent.json", "--images", scenes / "images").sentence()
    names = ("v2_OpenEnded_mscoco_val2014_questions.json", "TextVQA_0.5.1_val.json", "testdev_balanced_questions.json")
    assert all(name in told for name in ("absent.json", *names))


def test_weights_that_do_not_fit_are_told_before_they_are_loaded(
    cli: Cli, models: dict[str, Path], questions: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compact = tmp_path / "compact"
    cli("compress", models["qwen"], compact, "--json").json()
    monkeypatch.setattr(run, "load_any_vlm", lambda *_: pytest.fail("the model was loaded"))
    for model, stem in ((models["qwen"], "model"), (compact, "infoprune")):
        need = sum(tensor.nbytes for tensor in headers(model, weight_map(model, stem)).values())  # all of it float32
        monkeypatch.setattr(weight_memory, "available_bytes", lambda _, need=need: need - 1)
        told = cli("evaluate", model, *questions, "--out", tmp_path / "out").sentence()
        assert f"need {need / 2**30:.2f} GiB on cpu, but only {(need - 1) / 2**30:.2f} GiB are available" in told
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_weights_take_what_is_predicted(
    cli: Cli, models: dict[str, Path], tmp_path: Path, dtype: torch.dtype
) -> None:
    """In the dtype that this machine computes in, which need not be the stored one; int8 stays int8."""
    dense, compact = tmp_path / "dense", tmp_path / "compact"
    shutil.copytree(models["qwen"], dense)
    vlm = load_any_vlm(models["qwen"]).model
    vlm.to(dtype).save_pretrained(dense)
    cli("compress", dense, compact, "--quantize", "int8", "--json").json()
    for model in (dense, compact):
        loaded = load_any_vlm(model).model
        taken = sum(tensor.nbytes for tensor in loaded.state_dict().values())
        assert weight_memory.weight_bytes(model, torch.device("cpu")) == taken
