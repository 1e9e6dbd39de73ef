"""Every command does from end to end what its options say, for people and as JSON."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from cli_models import BLOCKS, FFN_WIDTH, HEADS, MODELS, WIDTH, questions_of
from conftest import Cli
from PIL import Image
from torch import nn
from transformers import AutoModel

from infoprune_rt import load_vlm, plan
from infoprune_rt.cli import app, options
from infoprune_rt.demo.handwriting import read_handwriting
from infoprune_rt.evaluation import images, metric
from infoprune_rt.evaluation.answering import answer
from infoprune_rt.evaluation.format_writers import write_gqa, write_textvqa, write_vqav2
from infoprune_rt.model_loading import calibration_batches, describe_source, load_dense_vlm
from infoprune_rt.ops import plain
from infoprune_rt.plan import FFNPlan, Plan
from infoprune_rt.pruning import head_gates, head_scores
from infoprune_rt.pruning.head_scores import HeadScores
from infoprune_rt.runtime.encoder import CompactEncoder
from infoprune_rt.towers import adapter_for
from infoprune_rt.towers.loading import load_tower

SCORES = ((0.9, 0.1, 0.6, 0.2), (0.3, 0.25, 0.4, 0.05), (0.8, 0.7, 0.95, 0.99))
HALF = ((0, 2), (), (0, 1, 2, 3))  # the upper six of the scores
ABOVE_035 = ((0, 2), (2,), (0, 1, 2, 3))
ONE_EACH = ((0,), (2,), (0, 1, 2, 3))
ALL = (tuple(range(HEADS)),) * BLOCKS
ARCHITECTURE = {"qwen": "qwen2_vl", "llava": "clip"}


def write_scores(path: Path, model: str, method: str = "zeta") -> Path:
    HeadScores(method, ARCHITECTURE[model], SCORES).write(path)  # type: ignore[arg-type]  # one of the literals
    return path


def numel(modules: Sequence[nn.Module]) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def forms(found: dict[str, Any]) -> list[tuple[int, str, int | None]]:
    return [(row["heads"], row["ffn"], row["size"]) for row in found["rows"]]


# ------------------------------------------------------------------ learn-heads


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", list(options.Method))
def test_heads_are_scored_by_every_method(
    cli: Cli, models: dict[str, Path], questions: tuple[str, ...], tmp_path: Path, model: str, method: str
) -> None:
    out = tmp_path / "run"
    command = ("learn-heads", models[model], *questions, "--out", out, "--method", method, "--steps", 2)
    found = cli(*command, "--batch-size", 4, "--json").json()
    assert found["method"] == method
    assert found["architecture"] == ARCHITECTURE[model]
    assert found["out"] == str(out / "head-scores.json")
    scores = HeadScores.read(out / "head-scores.json")
    assert [list(row) for row in scores.scores] == found["scores"]
    assert scores.tensor().shape == (BLOCKS, HEADS)
    trained = {"log.jsonl", "zeta.png", "checkpoint.safetensors", "gram.safetensors"} if method == "zeta" else set()
    assert {path.name for path in out.iterdir()} == {"head-scores.json"} | trained


def test_settings_reach_the_training_and_a_finished_run_is_kept(
    cli: Cli, models: dict[str, Path], questions: tuple[str, ...], tmp_path: Path
) -> None:
    given = {"steps": 3, "batch_size": 5, "lr": 0.1, "beta": 0.5, "gamma": 0.25, "mu": 0.125, "seed": 7}
    given |= {"ks": "empirical", "tau": 0.25, "gate": "hard_concrete", "init_logit": 1.5, "micro_batch": 2}
    words = [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", value)]
    command = ("learn-heads", models["qwen"], *questions, "--out", tmp_path / "run", *words)
    first = cli(*command, "--checkpoint-activations", "--json").json()
    given |= {"checkpoint_activations": True}
    assert {name: first["settings"][name] for name in given} == given
    again = cli(*command)
    assert (again.status, again.err) == (0, "")
    assert "head scores (zeta)" in again.out
    assert HeadScores.read(tmp_path / "run" / "head-scores.json").to_dict()["scores"] == tuple(
        map(tuple, first["scores"])
    )


# ------------------------------------------------------------------ compress and inspect

KEEP_HALF, CUT, SPARE = ("--keep", 0.5), ("--zeta-below", 0.35), ("--keep", 0.5, "--min-heads", 1)
FAITHFUL = ("--no-refit", "--no-sequential")
LOWRANK, MERGED, FEW, ACTIVATED = ("lowrank", 12), ("merged", None), ("neurons", 40), ("neurons", 12)
HYBRID = ("hybrid", 41)
COMPRESSIONS = [
    (KEEP_HALF, HALF, ("--ffn", "dense"), ("dense", FFN_WIDTH)),
    (KEEP_HALF, HALF, ("--ffn", "taylor", "--size", 12), LOWRANK),
    (
        CUT,
        ABOVE_035,
        ("--ffn", "taylor", "--size", 12, "--bias", "taylor", *FAITHFUL),
        LOWRANK,
    ),
    (CUT, ABOVE_035, ("--ffn", "rrr", "--size", 40), MERGED),
    (SPARE, ONE_EACH, ("--ffn", "neurons", "--size", 40), FEW),
    (SPARE, ONE_EACH, ("--ffn", "hybrid", "--size", 41), HYBRID),
    (None, ALL, ("--ffn", "hybrid", "--size", 41, "--no-sequential"), HYBRID),
    (None, ALL, ("--ffn", "rrr", "--size", 12, "--no-sequential"), LOWRANK),
    (KEEP_HALF, HALF, ("--ffn", "taylor", "--size", 12, "--between", "gelu"), ACTIVATED),
    (None, ALL, ("--ffn", "rrr", "--size", 12, "--between", "gelu", "--no-sequential"), ACTIVATED),
]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("selection", "kept", "ffn", "form"), COMPRESSIONS)
def test_a_model_is_compressed_as_asked(
    cli: Cli,
    models: dict[str, Path],
    scenes: Path,
    tmp_path: Path,
    model: str,
    selection: tuple[object, ...] | None,
    kept: tuple[tuple[int, ...], ...],
    ffn: tuple[object, ...],
    form: tuple[str, int | None],
) -> None:
    out = tmp_path / "compact"
    heads = () if selection is None else ("--heads", write_scores(tmp_path / "s.json", model), *selection)
    command = ("compress", models[model], out, "--images", scenes / "images", "--batch-size", 2, *heads, *ffn)
    found = cli(*command, "--json").json()
    assert forms(found) == [(len(heads), *form) for heads in kept]
    assert (found["out"], found["skipped_images"]) == (str(out), [])
    assert tuple(block.heads for block in Plan.read(out / "plan.json").blocks) == kept
    vlm, dense = load_vlm(out), load_tower(models[model])
    adapter = adapter_for(vlm.config)
    assert found["parameters"] == numel([adapter.tower_of(vlm).blocks])
    assert found["dense_parameters"] == numel([block.module for block in adapter.blocks(dense)])
    assert found["parameters"] < found["dense_parameters"]
    assert found["flops"] < found["dense_flops"]
    seen = cli("inspect", out, "--json").json()
    assert seen == {name: value for name, value in found.items() if name not in ("out", "skipped_images")}


@pytest.mark.parametrize("model", MODELS)
def test_the_rows_of_pictures_are_known_before_they_are_prepared(
    models: dict[str, Path], scenes: Path, tmp_path: Path, model: str
) -> None:
    pictures = sorted(Path(shutil.copytree(scenes / "images", tmp_path / "images")).iterdir())
    with Image.open(pictures[0]) as picture:
        picture.resize((300, 70)).save(pictures[0])
    batches = calibration_batches(describe_source(models[model]), tmp_path / "images", 5, 2, "refuse")
    tower = load_tower(models[model])
    adapter = adapter_for(tower.config)
    assert batches.rows() == [len(adapter.embed(tower, batch)[0]) for batch in batches()]
    pictures[4].write_bytes(b"")
    assert batches.rows()[2:] == [0]


def test_blocks_that_llava_does_not_use_stay_as_they_are(
    cli: Cli, models: dict[str, Path], scenes: Path, tmp_path: Path
) -> None:
    dense, out = Path(shutil.copytree(models["llava"], tmp_path / "dense")), tmp_path / "out"
    values = json.loads((dense / "config.json").read_text())
    (dense / "config.json").write_text(json.dumps(values | {"vision_feature_layer": -2}))
    heads = ("--heads", write_scores(tmp_path / "s.json", "llava"), "--keep", 0.5)
    command = ("compress", dense, out, "--images", scenes / "images", *heads, "--ffn", "neurons", "--size", 40)
    found = cli(*command, "--json").json()
    assert forms(found) == [(2, "neurons", 40), (2, "neurons", 40), (HEADS, "dense", FFN_WIDTH)]
    assert Plan.read(out / "plan.json").method["used_blocks"] == 2
    compact, tower = load_vlm(out), load_tower(dense)
    block, last = adapter_for(compact.config).tower_of(compact).blocks[2], adapter_for(tower.config).blocks(tower)[2]
    assert torch.equal(block.out.weight, last.out_proj.weight)
    assert torch.equal(block.ffn.fc1_weight, last.fc1.weight)


@pytest.mark.parametrize("model", MODELS)
def test_zeta_is_folded_into_the_output_projections(
    cli: Cli, models: dict[str, Path], tmp_path: Path, model: str
) -> None:
    heads = ("--heads", write_scores(tmp_path / "s.json", model), *KEEP_HALF, "--no-refit")
    for out, more in (("back", ()), ("folded", ("--fold-zeta",))):
        cli("compress", models[model], tmp_path / out, *heads, *more, "--json").json()
    back, folded = (CompactEncoder.from_pretrained(tmp_path / out) for out in ("back", "folded"))
    assert back.plan is not None
    assert folded.plan is not None
    assert [block.zeta for block in back.plan.blocks] == [None] * BLOCKS
    assert [block.zeta for block in folded.plan.blocks] == [
        tuple(SCORES[i][h] for h in heads) for i, heads in enumerate(HALF)
    ]
    assert folded.plan.method["fold_zeta"]
    assert "fold_zeta" not in back.plan.method
    theirs = folded.state_dict()
    for name, tensor in back.state_dict().items():
        factor = torch.ones(())
        if name.endswith("out.weight"):
            block = int(name.split(".")[1])
            factor = torch.tensor(folded.plan.blocks[block].zeta).repeat_interleave(WIDTH // HEADS)
        assert torch.equal(theirs[name], tensor * factor), name


@pytest.mark.parametrize("mode", ["taylor", "rrr", "neurons", "hybrid"])
def test_epsilon_decides_sizes(cli: Cli, models: dict[str, Path], scenes: Path, tmp_path: Path, mode: str) -> None:
    sizes = []
    for i, epsilon in enumerate((0.9, 0.01)):
        command = ("compress", models["qwen"], tmp_path / str(i), "--images", scenes / "images", "--batch-size", 2)
        found = cli(*command, "--ffn", mode, "--epsilon", epsilon, "--json").json()
        assert all(row["size"] is None or row["size"] % 16 == 0 for row in found["rows"])
        sizes.append(found["parameters"])
    assert sizes[0] < sizes[1] <= found["dense_parameters"]


def test_blocks_stay_dense_by_name_and_by_error(
    cli: Cli, models: dict[str, Path], scenes: Path, tmp_path: Path
) -> None:
    command = ("compress", models["llava"], tmp_path / "compact", "--images", scenes / "images", "--batch-size", 3)
    fitted = (*command, "--ffn", "rrr", "--size", 12)
    found = cli(*fitted, "--dense-block", 0, "--dense-block", 2, "--json").json()
    assert [row["ffn"] for row in found["rows"]] == ["dense", "lowrank", "dense"]
    error = found["rows"][1]["held_out_error"]
    again = cli(*fitted, "--max-error", error / 1e6, "--overwrite", "--json").json()
    assert [row["ffn"] for row in again["rows"]] == ["dense"] * BLOCKS
    assert all("exceeds max_error" in row["note"] for row in again["rows"])


def test_a_plan_edited_by_hand_is_carried_out(cli: Cli, models: dict[str, Path], scenes: Path, tmp_path: Path) -> None:
    pictures = ("--images", scenes / "images", "--batch-size", 2)
    cli("compress", models["qwen"], tmp_path / "first", *pictures, "--ffn", "rrr", "--size", 12, "--json").json()
    values = json.loads((tmp_path / "first" / "plan.json").read_text())
    values["blocks"][0]["heads"] = []
    values["blocks"][0]["ffn"]["between"] = "gelu"
    values["blocks"][1] = {"heads": [1, 3], "ffn": {"mode": "neurons", "size": 30}, "zeta": [0.5, 2.0]}
    values["blocks"][2]["ffn"] = {"mode": "dense"}
    values |= {"refit": False, "sequential": False}
    (tmp_path / "plan.json").write_text(json.dumps(values))
    command = ("compress", models["qwen"], tmp_path / "second", *pictures, "--plan", tmp_path / "plan.json")
    found = cli(*command, "--json").json()
    assert forms(found) == [(0, "neurons", 12), (2, "neurons", 30), (HEADS, "dense", FFN_WIDTH)]
    assert [row["note"] for row in found["rows"]] == ["gelu between the factors", None, None]
    applied = Plan.read(tmp_path / "second" / "plan.json")
    assert applied.blocks[0].ffn.between == "gelu"
    assert applied.blocks[1].zeta == (0.5, 2.0)
    assert replace(applied.blocks[2].ffn, kind=None) == FFNPlan()
    assert not applied.refit


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("ffn", [(), ("--ffn", "taylor"), ("--ffn", "rrr"), ("--ffn", "neurons"), ("--ffn", "hybrid")])
def test_weights_are_quantised_as_the_last_step(
    cli: Cli, models: dict[str, Path], scenes: Path, tmp_path: Path, model: str, ffn: tuple[str, ...]
) -> None:
    heads = ("--heads", write_scores(tmp_path / "s.json", model), *KEEP_HALF)
    fitted = ("--images", scenes / "images", *heads, *ffn, *(("--size", 40) if ffn else ()))
    plain = cli("compress", models[model], tmp_path / "float", *fitted, "--json").json()
    found = cli("compress", models[model], tmp_path / "int8", *fitted, "--quantize", "int8", "--json").json()
    assert forms(found) == forms(plain)
    assert [row["quantize"] for row in found["rows"]] == ["int8"] * BLOCKS
    assert (found["dtype"], plain["bytes"]) == ("float32", 4 * plain["parameters"])
    vlm = load_vlm(tmp_path / "int8")
    blocks = adapter_for(vlm.config).tower_of(vlm).blocks
    assert found["bytes"] == sum(p.nbytes for p in blocks.parameters()) < 0.35 * plain["bytes"]
    state, codes = CompactEncoder.from_pretrained(tmp_path / "float").state_dict(), blocks.state_dict()
    for name, scale in ((name, scale) for name, scale in codes.items() if name.endswith("_scale")):
        weight = name.removesuffix("_scale")
        error = (codes[weight] * scale[:, None] - state[f"blocks.{weight}"]).abs()
        assert (error <= 0.501 * scale[:, None]).all(), name
    shown = cli("inspect", tmp_path / "int8")
    assert "int8" in shown.out
    assert "float32" in shown.out


def test_a_plan_chooses_which_blocks_are_quantised(cli: Cli, models: dict[str, Path], tmp_path: Path) -> None:
    command = ("compress", models["llava"])
    cli(*command, tmp_path / "all", "--quantize", "int8", "--tower-only", "--json").json()
    values = json.loads((tmp_path / "all" / "plan.json").read_text())
    assert [block["quantize"] for block in values["blocks"]] == ["int8"] * BLOCKS
    del values["blocks"][0]["quantize"]
    (tmp_path / "plan.json").write_text(json.dumps(values))
    some = cli(*command, tmp_path / "some", "--plan", tmp_path / "plan.json", "--json").json()
    assert [row["quantize"] for row in some["rows"]] == [None, "int8", "int8"]
    again = ("--plan", tmp_path / "plan.json", "--quantize", "int8")
    found = cli(*command, tmp_path / "again", *again, "--tower-only", "--json").json()
    assert [row["quantize"] for row in found["rows"]] == ["int8"] * BLOCKS
    state = CompactEncoder.from_pretrained(tmp_path / "again").state_dict()
    for name, tensor in CompactEncoder.from_pretrained(tmp_path / "all").state_dict().items():
        assert torch.equal(state[name], tensor), name


def test_a_quantised_model_answers(
    cli: Cli, models: dict[str, Path], questions: tuple[str, ...], tmp_path: Path
) -> None:
    cli("compress", models["qwen"], tmp_path / "int8", "--quantize", "int8", "--json").json()
    found = cli("evaluate", tmp_path / "int8", *questions, "--limit", 6, "--max-new-tokens", 4, "--json").json()
    assert (found["questions"], found["skipped"]) == (6, 0)


def test_the_tower_alone_is_the_full_models_tower(
    cli: Cli, models: dict[str, Path], scenes: Path, tmp_path: Path
) -> None:
    command = ("--heads", write_scores(tmp_path / "s.json", "qwen"), *KEEP_HALF, "--images", scenes / "images")
    for out, more in (("vlm", ()), ("tower", ("--tower-only",))):
        run = cli("compress", models["qwen"], tmp_path / out, *command, *more)
        assert (run.status, run.err) == (0, "")
        assert f"written to {tmp_path / out}" in run.out
    inside, alone = CompactEncoder.from_pretrained(tmp_path / "vlm"), AutoModel.from_pretrained(tmp_path / "tower")
    assert inside.state_dict().keys() == alone.state_dict().keys()
    assert all(torch.equal(tensor, alone.state_dict()[name]) for name, tensor in inside.state_dict().items())
    sizes = [sum(path.stat().st_size for path in (tmp_path / out).iterdir()) for out in ("vlm", "tower")]
    assert sizes[1] < sizes[0]
    # A checkpoint of a tower alone is compressed the same way.
    load_tower(models["qwen"]).save_pretrained(tmp_path / "dense")
    shutil.copy(models["qwen"] / "preprocessor_config.json", tmp_path / "dense")
    cli("compress", tmp_path / "dense", tmp_path / "again", *command, "--json").json()
    again = AutoModel.from_pretrained(tmp_path / "again").state_dict()
    assert all(torch.equal(tensor, alone.state_dict()[name]) for name, tensor in again.items())


@pytest.mark.parametrize("model", MODELS)
def test_a_dense_model_is_inspected(cli: Cli, models: dict[str, Path], model: str) -> None:
    found = cli("inspect", models[model], "--patches", 10, "--json").json()
    assert forms(found) == [(HEADS, "dense", FFN_WIDTH)] * BLOCKS
    adapter = adapter_for(load_tower(models[model]).config)
    blocks = [block.module for block in adapter.blocks(load_tower(models[model]))]
    assert found["parameters"] == found["dense_parameters"] == numel(blocks)
    assert [row["parameters"] for row in found["rows"]] == [numel([block]) for block in blocks]
    linear = 10 * 2 * (4 * WIDTH * WIDTH + 2 * WIDTH * FFN_WIDTH)
    assert found["flops"] == BLOCKS * (linear + 2 * 2 * 10 * 10 * WIDTH)
    shown = cli("inspect", models[model])
    assert (shown.status, shown.err) == (0, "")
    assert f"{ARCHITECTURE[model]}: {BLOCKS} blocks" in shown.out
    assert "100.0%" in shown.out


# ------------------------------------------------------------------ evaluate


@pytest.fixture(scope="session", params=MODELS)
def told(request: pytest.FixtureRequest, models: dict[str, Path], scenes: Path, tmp_path_factory: Any) -> Any:
    """A model, and the scenes' questions with the model's own answers as the truth, where it has any."""
    folder = tmp_path_factory.mktemp("told") / "scenes"
    shutil.copytree(scenes, folder)
    vlm = load_dense_vlm(models[request.param])
    dataset = read_handwriting(folder)
    said = answer(vlm.model, vlm.processor, dataset, 16, max_new_tokens=4, progress=False)
    assert len({given.text for given in said}) > 3, "answers that do not depend on the question test nothing"
    examples = [
        replace(example, answers=(given.text,) * len(example.answers))
        for example, given in zip(dataset, said, strict=True)
        if given.text is not None and given.text.strip()
    ]
    vqa, text, relations = ([e for e in examples if e.family == family] for family in ("vqa", "text", "relations"))
    named = [Path(word) for word in questions_of(folder) if word.endswith(".json")]
    asked, truth, of_text, of_relations = named
    write_vqav2(vqa, asked, truth, "handwriting")
    write_textvqa(text, of_text, "train")
    write_gqa(relations, of_relations)
    return models[request.param], folder, {"vqa": len(vqa), "text": len(text), "relations": len(relations)}


def test_dense_and_compact_models_are_evaluated_in_all_formats(cli: Cli, told: Any, tmp_path: Path) -> None:
    model, folder, counts = told
    compact = tmp_path / "compact"
    cli("compress", model, compact, "--json").json()  # nothing is removed, so that the answers stay
    for place in (model, compact):
        command = ("evaluate", place, *questions_of(folder), "--batch-size", 7, "--max-new-tokens", 4)
        found = cli(*command, "--mode", "lmms-eval", "--json").json()
        assert all(found[family] == 100.0 for family in (*counts, "overall"))
        assert (found["questions"], found["skipped"], found["mode"]) == (sum(counts.values()), 0, "lmms-eval")


def test_a_wrong_model_is_not_right(cli: Cli, told: Any, tmp_path: Path) -> None:
    """The same questions put to a model without heads, in each format alone, with a limit."""
    model, folder, counts = told
    name = next(name for name in MODELS if model.name == name)
    heads = ("--heads", write_scores(tmp_path / "s.json", name), "--keep", 0, "--no-refit")
    cli("compress", model, tmp_path / "compact", *heads, "--json").json()
    asked, truth, text, relations = (word for word in questions_of(folder) if word.endswith(".json"))
    right = 0
    for family, data in (("vqa", (asked, "--annotations", truth)), ("text", (text,)), ("relations", (relations,))):
        command = ("evaluate", tmp_path / "compact", "--images", folder / "images", "--data", *data)
        found = cli(*command, "--max-new-tokens", 4, "--limit", 5, "--json").json()
        assert {"vqa", "text", "relations"} & found.keys() == {family}
        assert (found["questions"], found["mode"]) == (min(5, counts[family]), "official")
        right += found["overall"] * found["questions"] / 100
    assert right < sum(min(5, count) for count in counts.values())


def test_accuracies_are_shown_as_a_table(cli: Cli, models: dict[str, Path], questions: tuple[str, ...]) -> None:
    shown = cli("evaluate", models["qwen"], *questions, "--limit", 3)
    assert (shown.status, shown.err) == (0, "")
    assert "3 questions, official normalisation of answers" in shown.out
    assert "overall" in shown.out


# ------------------------------------------------------------------ the rest


def test_doctor_tells_versions_and_backends(cli: Cli) -> None:
    found = cli("doctor", "--json").json()
    assert found["versions"]["torch"] == torch.__version__
    assert "plain" in found["backends"]
    shown = cli("doctor")
    assert (shown.status, shown.err) == (0, "")
    assert f"torch {torch.__version__}" in shown.out


def test_every_command_has_help(cli: Cli) -> None:
    names = [command.name for command in app.registered_commands]
    assert names == ["demo", "learn-heads", "compress", "inspect", "evaluate", "doctor"]
    for name in names:
        shown = cli(name, "--help")
        assert (shown.status, shown.err) == (0, "")
        assert "--json" in shown.out


def test_choices_are_the_librarys() -> None:
    for offered, known in (
        (options.Method, head_scores.SCORE_METHODS),
        (options.KS, ("spectral", "empirical")),
        (options.Gate, head_gates.GATE_KINDS),
        (options.Mode, plan.MODES),
        (options.Quantize, plan.QUANTIZATIONS),
        (options.Activation, tuple(plain.ACTIVATIONS)),
        (options.OnCorrupt, get_args(images.OnCorrupt)),
        (options.Normalisation, metric.MODES),
    ):
        assert [choice.value for choice in offered] == list(known)
