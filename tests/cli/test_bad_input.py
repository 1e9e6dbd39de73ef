"""Plausible mistakes: one sentence that says what, where and what to do, status 2, and nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cli_models import BLOCKS, HEADS, WIDTH, questions_of
from conftest import Cli
from safetensors.torch import load_file, save_file
from transformers import BertConfig

from infoprune_rt import checkpoint, load_vlm
from infoprune_rt.pruning.head_log import HeadLog
from infoprune_rt.pruning.head_scores import HeadScores

FIT = ("--ffn", "rrr", "--size", 8)


@pytest.fixture
def model(models: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of a dense model, to be damaged."""
    return Path(shutil.copytree(models["qwen"], tmp_path / "model"))


@pytest.fixture
def folder(scenes: Path, tmp_path: Path) -> Path:
    """A copy of the scenes, to be damaged."""
    return Path(shutil.copytree(scenes, tmp_path / "scenes"))


@pytest.fixture
def refuses(cli: Cli, tmp_path: Path) -> Callable[..., None]:
    """Runs a command that must be refused with all these words, and leave the directory as it was."""

    def run(*command: object, saying: tuple[str, ...]) -> None:
        before = sorted(tmp_path.rglob("*"))
        sentence = cli(*command).sentence()
        for words in saying:
            assert words in sentence
        assert sorted(tmp_path.rglob("*")) == before

    return run


def edit_json(path: Path, change: Callable[[Any], Any]) -> Path:
    values = json.loads(path.read_text())
    changed = change(values)
    path.write_text(json.dumps(values if changed is None else changed))
    return path


# ------------------------------------------------------------------ models


def to_bert(model: Path) -> None:
    BertConfig().save_pretrained(model)


def to_other_vlm(model: Path) -> None:
    (model / "config.json").write_text('{"model_type": "idefics3", "vision_config": {}}')


def to_pickle(model: Path) -> None:
    torch.save(load_file(model / "model.safetensors"), model / "pytorch_model.bin")
    (model / "model.safetensors").unlink()


def tear(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def with_nan(name: str) -> Callable[[Path], None]:
    def damage(model: Path) -> None:
        state = load_file(model / "model.safetensors")
        (full,) = [key for key in state if key.endswith(name)]
        state[full].view(-1)[7] = float("nan")
        save_file(state, model / "model.safetensors", metadata={"format": "pt"})

    return damage


def without_config(model: Path) -> None:
    (model / "config.json").unlink()


SUPPORTED = "supported are qwen2_vl, qwen2_vl_vision, llava, clip_vision_model"
MODELS: list[tuple[Callable[[Path], object], tuple[str, ...]]] = [
    (shutil.rmtree, ("no such model", "model is neither a directory nor a hub id")),
    (without_config, ("has no config.json",)),
    (to_bert, ("config.json", "'bert' is no vision-language model", SUPPORTED)),
    (to_other_vlm, ("'idefics3' is not supported", SUPPORTED)),
    (to_pickle, ("only pickled ones (pytorch_model.bin), which are never loaded", "save_pretrained")),
    (tear, ("model.safetensors is not a whole safetensors file",)),
    (with_nan("blocks.1.mlp.fc1.weight"), ("blocks.1.mlp.fc1.weight' holds NaN or infinite values",)),
    (with_nan("layers.0.mlp.up_proj.weight"), ("layers.0.mlp.up_proj.weight' holds NaN or infinite values",)),
]


@pytest.mark.parametrize(("damage", "saying"), MODELS)
def test_models_that_cannot_be_used(
    refuses: Callable[..., None],
    questions: tuple[str, ...],
    tmp_path: Path,
    model: Path,
    damage: Callable[[Path], object],
    saying: tuple[str, ...],
) -> None:
    damage(model)
    refuses("compress", model, tmp_path / "out", saying=saying)
    refuses("evaluate", model, *questions, saying=saying)
    refuses("learn-heads", model, *questions, "--out", tmp_path / "out", saying=saying)


def test_models_of_the_wrong_kind(
    cli: Cli, refuses: Callable[..., None], scenes: Path, questions: tuple[str, ...], tmp_path: Path, model: Path
) -> None:
    compact, tower = tmp_path / "compact", tmp_path / "tower"
    cli("compress", model, compact, "--json").json()
    cli("compress", model, tower, "--tower-only", "--json").json()
    refuses("compress", compact, tmp_path / "out", saying=("is a compact checkpoint already", "dense model"))
    refuses("learn-heads", compact, *questions, "--out", tmp_path / "out", saying=("compact checkpoint already",))
    refuses("evaluate", tower, *questions, saying=(str(tower), "holds a tower alone, not a full model"))
    shutil.rmtree(tower)
    edit_json(model / "config.json", lambda values: values["vision_config"])
    refuses("evaluate", model, *questions, saying=(str(model), "is a vision tower alone", "full model"))
    (model / "preprocessor_config.json").unlink()
    asked = ("--images", scenes / "images", *FIT)
    refuses("compress", model, tmp_path / "out", *asked, saying=("no readable preprocessor_config.json", "copy it"))
    (compact / "config.json").write_text((compact / "config.json").read_text().replace("lowrank", "merged") + " ")
    refuses("inspect", compact, saying=(str(compact / "config.json"), "truncated or altered"))
    refuses("evaluate", compact, *questions, saying=(str(compact / "config.json"), "truncated or altered"))


def test_a_model_that_lacks_a_tensor_is_not_made_up(
    refuses: Callable[..., None], questions: tuple[str, ...], model: Path
) -> None:
    state = load_file(model / "model.safetensors")
    (name,) = [key for key in state if key.endswith("layers.0.mlp.up_proj.weight")]
    del state[name]
    save_file(state, model / "model.safetensors", metadata={"format": "pt"})
    refuses("evaluate", model, *questions, saying=("lack 1 of the model's tensors", "layers.0.mlp.up_proj.weight"))


# ------------------------------------------------------------------ plans and scores


def block(index: int, **values: Any) -> Callable[[Any], None]:
    return lambda plan: plan["blocks"][index].update(values)


def ffn(index: int, **values: Any) -> Callable[[Any], None]:
    return lambda plan: plan["blocks"][index]["ffn"].update(values)


def shape(**values: Any) -> Callable[[Any], None]:
    return lambda plan: plan["shape"].update(values)


PLANS: list[tuple[Callable[[Any], Any], str]] = [
    (block(1, heads=[0, HEADS]), f"block 1: heads [0, {HEADS}] name a head outside 0..{HEADS - 1}"),
    (block(1, heads=[-1]), "block 1: heads [-1] name a head outside"),
    (block(1, heads=[1, 1]), "must be distinct and in rising order"),
    (block(1, heads=[0.5]), '"heads" must be a list of head indices'),
    (block(1, heads=None), '"heads" must be a list of head indices'),
    (block(1, zeta=[1.0]), f"block 1: 1 zeta values for {HEADS} kept heads"),
    (block(1, zeta=["a"] * HEADS), 'block 1: "zeta" must be a list of finite numbers'),
    (block(1, head=[0]), "block 1 has an unknown field 'head'"),
    (lambda plan: plan["blocks"][1].pop("heads") and None, "block 1 lacks the field 'heads'"),
    (lambda plan: plan["blocks"].pop() and None, f"the plan has {BLOCKS - 1} blocks, but the tower has {BLOCKS}"),
    (ffn(2, mode="rrr", size=WIDTH + 1), f"block 2: FFN rank must be a whole number in 1..{WIDTH}, not {WIDTH + 1}"),
    (ffn(2, mode="rrr", size=0), f"block 2: FFN rank must be a whole number in 1..{WIDTH}, not 0"),
    (ffn(2, mode="rrr", size="8"), "not '8'"),
    (ffn(2, mode="rrr", size=True), "not True"),
    (ffn(2, mode="neurons", size=9999), "block 2: FFN neurons must be a whole number in 1..256"),
    (ffn(2, mode="rrr"), "block 2: FFN mode 'rrr' needs a size (rank) or an epsilon"),
    (ffn(2, mode="hybrid"), "block 2: FFN mode 'hybrid' needs a size (neurons and rank) or an epsilon"),
    (
        ffn(2, mode="hybrid", size=2 * WIDTH + 1),
        f"block 2: FFN neurons and rank must be a whole number in 2..{2 * WIDTH}, not {2 * WIDTH + 1}",
    ),
    (ffn(2, mode="hybrid", size=4.0), "in 2..128, not 4.0"),
    (ffn(2, mode="hybrid", size=4, between="gelu"), "block 2: FFN mode 'hybrid' has no factors to put"),
    (ffn(2, mode="rrr", epsilon=1.0), "block 2: epsilon must lie between 0 and 1 (exclusive), not 1.0"),
    (ffn(2, mode="rrr", epsilon="0.1"), "not '0.1'"),
    (ffn(2, mode="rrr", size=4, max_error="small"), "block 2: max_error must be a number above 0, not 'small'"),
    (ffn(2, mode="rrr", size=4, between="relu"), "block 2: unknown activation 'relu' between the factors; known are"),
    (ffn(2, mode="rrr", size=4, between=["gelu"]), "block 2: unknown activation ['gelu'] between the factors"),
    (ffn(2, mode="neurons", size=4, between="gelu"), "block 2: FFN mode 'neurons' has no factors to put"),
    (ffn(2, between="gelu"), "block 2: FFN mode 'dense' has no factors to put an activation between"),
    (block(1, quantize="int4"), "block 1: unknown \"quantize\" 'int4'; known are int8, and null"),
    (ffn(2, mode="magic"), "block 2: unknown FFN mode 'magic'; known are dense, taylor, rrr, neurons, hybrid"),
    (shape(num_heads=8), f"the plan is for a tower with num_heads 8, but this one has num_heads {HEADS}"),
    (shape(width="64"), "width must be a whole number above 0, not '64'"),
    (lambda plan: plan.update(architecture="clip"), "the plan is for a 'clip' tower, but this one is 'qwen2_vl'"),
    (lambda plan: plan.update(refit="no"), "\"refit\" must be true or false, not 'no'"),
    (lambda plan: plan.update(format=2), "not a plan of format 1"),
    (lambda plan: plan.update(blocks={}), '"blocks" must be a list'),
    (lambda plan: [plan], "not a plan of format 1"),
]


def test_plans_edited_badly(cli: Cli, refuses: Callable[..., None], models: dict[str, Path], tmp_path: Path) -> None:
    cli("compress", models["qwen"], tmp_path / "compact", "--json").json()
    for change, saying in PLANS:
        plan = shutil.copy(tmp_path / "compact" / "plan.json", tmp_path / "plan.json")
        edit_json(plan, change)
        refuses("compress", models["qwen"], tmp_path / "out", "--plan", plan, saying=(saying,))
    plan.write_text("{")
    refuses("compress", models["qwen"], tmp_path / "out", "--plan", plan, saying=("plan.json is not a readable plan",))
    absent = tmp_path / "absent.json"
    refuses("compress", models["qwen"], tmp_path / "out", "--plan", absent, saying=("absent.json is not a readable",))


def test_scores_of_another_tower(refuses: Callable[..., None], models: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    command = ("compress", models["qwen"], tmp_path / "out", "--heads", path)
    for architecture, rows, saying in (
        ("clip", ((0.5,) * HEADS,) * BLOCKS, "the scores are of a 'clip' tower"),
        ("qwen2_vl", ((0.5,) * HEADS,) * 2, "of 2 blocks"),
        ("qwen2_vl", ((0.5,) * 9,) * BLOCKS, "with 9 heads, but this one is"),
    ):
        HeadScores("zeta", architecture, rows).write(path)
        refuses(*command, "--keep", 0.5, saying=(saying, "score this model's heads"))
    HeadScores("random", "qwen2_vl", ((0.5,) * HEADS,) * BLOCKS).write(path)
    refuses(*command, "--zeta-below", 0.5, saying=("these are random scores; use a budget",))
    folded = ("--keep", 0.5, "--fold-zeta", "--no-refit")
    refuses(*command, *folded, saying=("only a trained zeta can be folded", "these are random scores"))
    path.write_text('{"format": 1, "scores": [[1]]}')
    refuses(*command, "--keep", 0.5, saying=("scores.json", "'architecture' is missing or unknown"))


# ------------------------------------------------------------------ options

OPTIONS: list[tuple[tuple[object, ...], str]] = [
    *[
        (("--ffn", "rrr", "--epsilon", epsilon), "epsilon must lie between 0 and 1 (exclusive)")
        for epsilon in (0, 1, 1.5, -0.1, "nan")
    ],
    (("--epsilon", 0.1), "--epsilon needs a way to fit FFNs: give --ffn taylor, rrr, neurons or hybrid"),
    (("--dense-block", 0), "--dense-block needs a way to fit FFNs"),
    (("--ffn", "rrr"), "--ffn rrr needs either --size (a rank) or --epsilon"),
    (("--ffn", "neurons", "--size", 4, "--epsilon", 0.1), "--ffn neurons needs either --size (neurons) or --epsilon"),
    (("--ffn", "hybrid"), "--ffn hybrid needs either --size (neurons and rank together) or --epsilon"),
    (("--ffn", "hybrid", "--size", 4, "--between", "gelu"), "--between needs two factors to stand between"),
    (("--ffn", "hybrid", "--size", 1), f"FFN neurons and rank must be a whole number in 2..{2 * WIDTH}, not 1"),
    (("--ffn", "taylor", "--size", WIDTH + 1), f"FFN rank must be a whole number in 1..{WIDTH}"),
    ((*FIT, "--max-error", -1), "max_error must be a number above 0, not -1.0"),
    ((*FIT, "--dense-block", BLOCKS), f"no block {BLOCKS} to keep dense; blocks are 0..{BLOCKS - 1}"),
    (("--keep", 0.5), "give --heads head-scores.json from learn-heads"),
    (("--min-heads", 1), "--min-heads belongs to a budget: give --keep"),
    (("--heads", "SCORES"), "--heads needs either --keep (a budget) or --zeta-below"),
    (("--heads", "SCORES", "--keep", 0.5, "--zeta-below", 0.5), "--heads needs either"),
    (("--heads", "SCORES", "--keep", 1.5), "the fraction of heads to keep must lie in 0..1, not 1.5"),
    (("--heads", "SCORES", "--zeta-below", 1), "the zeta threshold must lie between 0 and 1"),
    (("--heads", "SCORES", "--keep", 0.1, "--min-heads", 2), "keep more or lower min_heads"),
    (("--heads", "absent.json", "--keep", 0.1), "absent.json is not a readable file of head scores"),
    (("--plan", "plan.json", *FIT), "--plan says all that --ffn could say"),
    (("--plan", "plan.json", "--no-refit"), "--plan says all that --refit could say"),
    (("--plan", "plan.json", "--fold-zeta"), "--plan says all that --fold-zeta could say"),
    (("--plan", "plan.json", "--between", "gelu"), "--plan says all that --between could say"),
    (("--fold-zeta", "--no-refit"), "--fold-zeta needs a trained zeta: give --heads"),
    (("--heads", "SCORES", "--keep", 0.5, "--fold-zeta"), "--fold-zeta scales the output projections that --refit"),
    (("--between", "gelu"), "--between needs two factors to stand between: give --ffn taylor or rrr"),
    (("--ffn", "neurons", "--size", 4, "--between", "gelu"), "--between needs two factors to stand between"),
    (FIT, "fitted to data: give --images"),
    ((*FIT, "--images", "absent"), "there is no folder absent of calibration pictures"),
    ((*FIT, "--spill-dir", "absent"), "there is no directory absent to spill calibration activations to"),
    (("--device", "gpu"), "unknown device 'gpu'; use auto, cpu, cuda or cuda:N"),
    (("--device", "cuda:99"), "device 'cuda:99' is not there"),
    ((*FIT, "--images", "EMPTY"), "holds no pictures (.bmp, .jpeg, .jpg, .png, .webp)"),
]


@pytest.mark.parametrize(("words", "saying"), OPTIONS)
def test_options_that_cannot_be(
    refuses: Callable[..., None], models: dict[str, Path], tmp_path: Path, words: tuple[object, ...], saying: str
) -> None:
    HeadScores("zeta", "qwen2_vl", ((0.5,) * HEADS,) * BLOCKS).write(tmp_path / "scores.json")
    (tmp_path / "empty").mkdir()
    places = {"SCORES": tmp_path / "scores.json", "EMPTY": tmp_path / "empty"}
    given = [places.get(str(word), word) for word in words]
    refuses("compress", models["qwen"], tmp_path / "out", *given, saying=(saying,))


def test_settings_of_a_training_that_cannot_be(
    refuses: Callable[..., None], models: dict[str, Path], questions: tuple[str, ...], tmp_path: Path
) -> None:
    command = ("learn-heads", models["qwen"], *questions, "--out", tmp_path / "out")
    refuses(*command, "--lr", -1, saying=("lr must be positive, not -1.0",))
    refuses(*command, "--beta", "nan", saying=("beta must be a finite weight >= 0, not nan",))
    refuses(*command, "--tau", 0.2, saying=("--tau is a width of the empirical reading: give --ks empirical",))
    refuses(*command, "--ks", "empirical", "--tau", 0, saying=("tau must be positive, not 0.0",))
    refuses(*command, "--init-logit", "inf", saying=("init_logit must be a finite number, not inf",))
    (tmp_path / "out").write_text("in the way")
    refuses(*command, "--steps", 1, saying=(f"could not make the directory {tmp_path / 'out'}", "another place"))


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("compress", "m", "out", "--ffn", "svd"), "'dense', 'taylor', 'rrr', 'neurons', 'hybrid'"),
        (("compress", "m", "out", "--bias", "none"), "'taylor', 'mean'"),
        (("compress", "m", "out", "--between", "relu"), "'quick_gelu', 'gelu', 'gelu_pytorch_tanh', 'silu'"),
        (("compress", "m", "out", "--on-corrupt", "eat"), "'refuse', 'skip'"),
        (("compress", "m", "out", "--max-images", 0), "--max-images"),
        (("compress", "m"), "Missing argument"),
        (("learn-heads", "m", "--method", "best"), "'zeta', 'random', 'magnitude', 'michel'"),
        (("learn-heads", "m", "--ks", "x"), "'spectral', 'empirical'"),
        (("learn-heads", "m", "--gate", "x"), "'sigmoid', 'hard_concrete'"),
        (("learn-heads", "m", "--steps", 0), "--steps"),
        (("learn-heads", "m", "--micro-batch", 0), "--micro-batch"),
        (("evaluate", "m", "--mode", "x"), "'official', 'lmms-eval'"),
        (("evaluate", "m", "--limit", 0), "--limit"),
        (("inspect", "m", "--patches", 0), "--patches"),
        (("squeeze",), "No such command"),
    ],
)
def test_usage_errors_are_told_by_option(cli: Cli, words: tuple[object, ...], named: str) -> None:
    run = cli(*words)
    assert (run.status, run.out) == (2, "")
    assert named in run.err
    assert "Traceback" not in run.err


# ------------------------------------------------------------------ questions and pictures


def drop_question(data: Any) -> None:
    del data["data"][2]["question"]


@pytest.mark.parametrize(
    ("change", "saying"),
    [
        (lambda path: path.write_text(""), "is not valid JSON"),
        (lambda path: path.write_text(path.read_text()[:-50]), "is not valid JSON"),
        (lambda path: path.write_text("[]"), "must hold a JSON object"),
        (lambda path: path.write_text('{"data": []}'), "holds no questions"),
        (lambda path: path.unlink(), "can't read the data file"),
        (lambda path: edit_json(path, drop_question), "record 2 (question_id"),
        (lambda path: edit_json(path, lambda d: d["data"].append(d["data"][0])), "occurs twice"),
    ],
)
def test_data_files_that_are_empty_or_broken(
    refuses: Callable[..., None],
    models: dict[str, Path],
    folder: Path,
    tmp_path: Path,
    change: Callable[[Path], object],
    saying: str,
) -> None:
    change(folder / "TextVQA_handwriting.json")
    words = (str(folder / "TextVQA_handwriting.json"), saying)
    refuses("evaluate", models["qwen"], *questions_of(folder), saying=words)
    refuses("learn-heads", models["qwen"], *questions_of(folder), "--out", tmp_path / "out", saying=words)


def test_data_files_that_do_not_go_together(
    refuses: Callable[..., None], models: dict[str, Path], questions: tuple[str, ...]
) -> None:
    _, asked, _, truth, _, text, _, relations, *images = questions
    evaluate = ("evaluate", models["qwen"], *images)
    refuses(*evaluate, "--data", asked, saying=("is a VQAv2 question file; name its annotations file",))
    refuses(*evaluate, "--data", text, "--annotations", truth, saying=("no annotations file belongs to it",))
    two = ("--data", text, "--data", relations)
    refuses(*evaluate, *two, "--annotations", truth, saying=("none of the data files is a VQAv2 question file",))
    twice = ("--data", asked, "--data", asked, "--annotations", truth)
    refuses(*evaluate, *twice, saying=("are both VQAv2 question files",))
    refuses("evaluate", models["qwen"], "--data", text, "--images", "absent", saying=("the image folder absent",))


def test_corrupt_pictures_are_refused_or_skipped_and_counted(
    cli: Cli, refuses: Callable[..., None], models: dict[str, Path], folder: Path, tmp_path: Path
) -> None:
    pictures = sorted((folder / "images").iterdir())
    whole = pictures[1].read_bytes()
    pictures[1].write_bytes(whole[:200])
    asked = len(json.loads((folder / "TextVQA_handwriting.json").read_text())["data"])
    compress = ("compress", models["qwen"], tmp_path / "out", *FIT, "--images", folder / "images", "--batch-size", 2)
    evaluate = ("evaluate", models["qwen"], *questions_of(folder))
    learn = ("learn-heads", models["qwen"], *questions_of(folder), "--out", tmp_path / "run")
    for command in (compress, evaluate):
        refuses(*command, saying=(f"the image {pictures[1]} can't be decoded", "replace it or skip"))
    assert f"the image {pictures[1]} can't be decoded" in cli(*learn, "--steps", 1).sentence()
    assert not (tmp_path / "run" / "head-scores.json").exists()
    skipped = cli(*compress, "--on-corrupt", "skip", "--json").json()
    assert [item["image"] for item in skipped["skipped_images"]] == [str(pictures[1])]
    told = cli(*compress, "--on-corrupt", "skip", "--overwrite")
    assert f"skipped {pictures[1]}: the image" in told.out
    found = cli(*evaluate, "--on-corrupt", "skip", "--json").json()
    assert [item["image"] for item in found["skipped_images"]] == [str(pictures[1])]
    assert found["skipped"] > 0
    assert found["questions"] + found["skipped"] == 6 * 8
    assert asked < found["questions"]
    shown = cli(*evaluate, "--on-corrupt", "skip")
    assert f"{found['skipped']} questions are not counted" in shown.out
    assert f"skipped {pictures[1]}" in shown.out
    # What was skipped leaves no trace in the fit.
    pictures[1].unlink()
    without = cli("compress", models["qwen"], tmp_path / "without", *compress[3:], "--json").json()
    assert without["rows"] == skipped["rows"]
    for path in pictures:
        path.write_bytes(b"")
    refuses(*compress[:2], tmp_path / "new", *compress[3:], "--on-corrupt", "skip", saying=("none of the 6",))
    refuses(*evaluate, "--on-corrupt", "skip", saying=("no question could be scored (48 skipped",))


@pytest.mark.parametrize("order", ["--sequential", "--no-sequential"])
def test_nan_in_calibration_is_told_with_the_batch(
    refuses: Callable[..., None],
    scenes: Path,
    questions: tuple[str, ...],
    tmp_path: Path,
    model: Path,
    order: str,
) -> None:
    edit_json(model / "preprocessor_config.json", lambda values: values.update(image_std=[0.0, 0.0, 0.0]))
    images = ("--images", scenes / "images")
    refuses(
        "compress", model, tmp_path / "out", *FIT, *images, order, saying=("calibration batch 0", "NaN or infinite")
    )


# ------------------------------------------------------------------ places and disks


def test_places_that_are_taken(cli: Cli, refuses: Callable[..., None], models: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    cli("compress", models["qwen"], out, "--json").json()
    refuses("compress", models["qwen"], out, saying=(f"{out} exists already", "overwrite it"))
    (out / "manifest.json").unlink()
    refuses("compress", models["qwen"], out, "--overwrite", saying=(f"{out} exists already", "no compact checkpoint"))
    below = out / "plan.json" / "deeper"
    refuses("compress", models["qwen"], below, saying=(f"could not make the directory {below.parent}",))


@contextmanager
def file_size_limit(num_bytes: int) -> Iterator[None]:
    """The kernel refuses to grow any file beyond this, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk(
    refuses: Callable[..., None],
    cli: Cli,
    models: dict[str, Path],
    scenes: Path,
    questions: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compress = ("compress", models["qwen"], tmp_path / "deep" / "out")
    with file_size_limit(30_000):
        sentence = cli(*compress).sentence()
        assert "nothing was left behind" in sentence
        assert not list(tmp_path.rglob("*out*"))
        spilling = cli(*compress, *FIT, "--images", scenes / "images").sentence()
        assert "could not spill calibration activations" in spilling
        learn = ("learn-heads", models["qwen"], *questions, "--out", tmp_path / "run", "--steps", 1, "--batch-size", 2)
        assert "gram.safetensors" in cli(*learn).sentence()
        assert not [path for path in (tmp_path / "run").iterdir() if path.stat().st_size]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000))
    refuses(*compress, saying=("not enough disk space", "are needed"))

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.undo()
    monkeypatch.setattr(HeadLog, "end_epoch", full)  # where nobody looks out for it
    assert "No space left on device; free some space" in cli(*learn).sentence()


KILLED = """
import os, signal, sys
from infoprune_rt import checkpoint
from infoprune_rt.cli import main

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

checkpoint.Plan.write = die  # the weights are written, the rest is not
main(sys.argv[1:])
"""


def test_an_interrupted_write(
    cli: Cli, models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    command = ("compress", models["qwen"], out)
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *map(str, command)], capture_output=True, text=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert (killed.stdout, killed.stderr) == ("", "")
    assert not out.exists()
    assert all(path.name.startswith(".out.infoprune-") for path in tmp_path.iterdir())

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Plan, "write", interrupt)
        run = cli(*command)
    assert (run.status, run.out, run.err) == (130, "", "")
    assert not list(tmp_path.iterdir())
    cli(*command, "--json").json()
    assert load_vlm(out).config.model_type == "qwen2_vl"
