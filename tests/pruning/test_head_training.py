from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny_vqa
import torch
from safetensors.torch import load_file
from tiny_vqa import HEAD_DIM, NUM_BLOCKS, NUM_HEADS, TinyBatches, tiny_vlm
from torch import Tensor

from infoprune_rt.errors import InfopruneError
from infoprune_rt.pruning import head_training
from infoprune_rt.pruning.head_gates import HeadGates, TowerHeads, gate_heads
from infoprune_rt.pruning.head_gram import stream_gram
from infoprune_rt.pruning.head_scores import HeadScores
from infoprune_rt.pruning.head_training import HeadTrainingSettings, train_heads
from infoprune_rt.pruning.information import erank
from infoprune_rt.pruning.task_loss import batch_indices, task_loss
from infoprune_rt.towers import adapter_for

SHORT: dict[str, Any] = {"steps": 6, "batch_size": 3, "gram_images": 5, "checkpoint_every": 2, "epoch_steps": 2}


@pytest.fixture(autouse=True)
def no_picture(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A picture takes a second: only the test that looks at it draws it."""
    if "picture" not in request.node.name:
        monkeypatch.setattr(head_training, "plot", lambda *_: None)


def train(out_dir: Path, batches: TinyBatches | None = None, **changes: Any) -> HeadScores:
    model = tiny_vlm()
    settings = HeadTrainingSettings(**(SHORT | changes))
    return train_heads(
        model, adapter_for(model.config), TinyBatches() if batches is None else batches, settings, out_dir
    )


def log_of(out_dir: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out_dir / "log.jsonl").read_text().splitlines()]


def head_outputs(model: torch.nn.Module, features: dict[str, Tensor]) -> list[Tensor]:
    """Z of every block, [T, n]."""
    adapter = adapter_for(model.config)  # type: ignore[arg-type]  # nn.Module types no config attribute
    outputs: list[Tensor] = []
    handles = [
        block.out_proj.register_forward_pre_hook(lambda _m, args: outputs.append(args[0]))
        for block in TowerHeads.of(model, adapter).blocks
    ]
    with torch.no_grad():
        adapter.tower_of(model)(**adapter.tower_inputs(features))
    for handle in handles:
        handle.remove()
    return outputs


def test_streamed_gram_is_that_of_all_images_at_once() -> None:
    model = tiny_vlm(dtype=torch.float64).eval()
    batches = TinyBatches(dtype=torch.float64)
    gram = stream_gram(model, adapter_for(model.config), batches, [[0, 1, 2], [3], [4, 5]])
    for block, z in zip(gram, head_outputs(model, batches.collate(range(6))), strict=True):
        torch.testing.assert_close(block, z.mT @ z)


def test_first_step_matches_the_objective_written_out(tmp_path: Path) -> None:
    """Losses and gradient norms of step 0 against autograd through an SVD of the gated outputs themselves."""
    dtype = torch.float64
    model, batches = tiny_vlm(dtype=dtype), TinyBatches(dtype=dtype)
    adapter = adapter_for(model.config)
    settings = HeadTrainingSettings(
        steps=1, batch_size=4, gram_images=len(batches), beta=0.5, gamma=2.0, mu=0.1, ks="empirical", tau=0.3
    )
    scores = train_heads(model, adapter, batches, settings, tmp_path)
    (line,) = log_of(tmp_path)

    gates = HeadGates(NUM_BLOCKS, NUM_HEADS).double()
    zeta = gates.zeta()
    model.eval()
    with gate_heads(TowerHeads.of(model, adapter).blocks, zeta, HEAD_DIM):
        task = task_loss(model, batches.collate(batch_indices(len(batches), 0, 4, 0)))
    eranks, distances = [], []
    for row, z in zip(zeta, head_outputs(model, batches.collate(range(len(batches)))), strict=True):
        dense, gated = torch.linalg.svdvals(z), torch.linalg.svdvals(z * row.repeat_interleave(HEAD_DIM))
        eranks.append((erank(gated) - erank(dense)) / erank(dense))
        points = torch.cat([dense, gated.detach()])
        cdfs = [torch.sigmoid((points[:, None] - s) / (0.3 * dense.mean())).mean(1) for s in (dense, gated)]
        distances.append((cdfs[0] - cdfs[1]).abs().max())
    terms = {"task": task, "erank": sum(eranks) / NUM_BLOCKS, "ks": sum(distances) / NUM_BLOCKS, "budget": zeta.mean()}
    weights = {"task": 1.0, "erank": 0.5, "ks": 2.0, "budget": 0.1}
    total = torch.zeros_like(zeta)
    for name, term in terms.items():
        (slope,) = torch.autograd.grad(term, gates.logits, retain_graph=True)
        total += weights[name] * slope
        # Gates are float32, and eRank's own value is a difference that vanishes at equal gates.
        assert line[f"loss_{name}"] == pytest.approx(float(term.detach()), rel=1e-4, abs=1e-6)
        assert line[f"gradient_{name}"] == pytest.approx(float(slope.norm()), rel=1e-3)
    # Adam's first step has the size of the learning rate, against the gradient's sign.
    expected = torch.sigmoid(3.0 - 0.05 * total.sign())
    torch.testing.assert_close(scores.tensor(), expected.detach(), atol=1e-4, rtol=0)


def test_training_leaves_the_model_alone_and_scores_log_and_picture_on_disk(tmp_path: Path) -> None:
    model = tiny_vlm().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    settings = HeadTrainingSettings(**SHORT, mu=0.5)
    scores = train_heads(model, adapter_for(model.config), TinyBatches(), settings, tmp_path)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert not any(m._forward_pre_hooks for m in model.modules())

    assert HeadScores.read(tmp_path / "head-scores.json") == scores
    assert scores.settings["mu"] == 0.5
    assert scores.provenance["items"] == 29
    lines = log_of(tmp_path)
    assert [line["step"] for line in lines] == [2, 4, 6]
    assert lines[-1]["mean_zeta"] == pytest.approx(scores.tensor().mean().item(), rel=1e-6)
    assert (tmp_path / "zeta.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob(".*"))
    assert (
        train_heads(model, adapter_for(model.config), TinyBatches(), settings, tmp_path) == scores
    )  # nothing left to do


def test_budget_term_finds_the_dead_heads(tmp_path: Path) -> None:
    model = tiny_vlm()
    adapter = adapter_for(model.config)
    dead = torch.zeros(NUM_BLOCKS, NUM_HEADS, dtype=torch.bool)
    dead[0, 1] = dead[2, 0] = True
    with torch.no_grad():
        for block, row in zip(TowerHeads.of(model, adapter).blocks, dead, strict=True):
            block.out_proj.weight *= ~row.repeat_interleave(HEAD_DIM)
    settings = HeadTrainingSettings(steps=40, batch_size=16, lr=0.1, beta=0, gamma=0, mu=0.02)
    scores = train_heads(model, adapter, TinyBatches(), settings, tmp_path).tensor()
    # Nothing but the budget acts on a dead head: both sink alike.
    assert scores[dead].max() - scores[dead].min() < 1e-6
    assert scores[dead].max() < 0.5
    assert "loss_erank" not in log_of(tmp_path)[0]
    assert not (tmp_path / "gram.safetensors").exists()


def test_erank_lowers_the_effective_rank_and_ks_holds_it(tmp_path: Path) -> None:
    strong = {"steps": 30, "batch_size": 1, "lr": 0.3, "gram_images": 20, "epoch_steps": 1}
    train(tmp_path / "erank", beta=30.0, gamma=0.0, **strong)
    train(tmp_path / "both", beta=30.0, gamma=3000.0, **strong)
    alone, held = log_of(tmp_path / "erank"), log_of(tmp_path / "both")
    assert alone[-1]["loss_erank"] < -0.05
    assert held[-1]["loss_erank"] > alone[-1]["loss_erank"] / 2


@pytest.mark.parametrize("gate", ["sigmoid", "hard_concrete"])
def test_resume_continues_an_interrupted_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: str) -> None:
    changes = {"gate": gate, "mu": 0.1, "epoch_steps": 3, "checkpoint_every": 2, "steps": 8, "ks": "empirical"}
    whole = train(tmp_path / "whole", **changes)
    calls = 0
    real = TinyBatches.collate

    def failing(self: TinyBatches, indices: Any) -> dict[str, Tensor]:
        nonlocal calls
        calls += 1
        if calls == 8:  # two for the Gram matrices, then step 5's: the last checkpoint is after step 4
            raise KeyboardInterrupt
        return real(self, indices)

    with monkeypatch.context() as patch:
        patch.setattr(TinyBatches, "collate", failing)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "cut", **changes)
    assert log_of(tmp_path / "cut")[-1]["step"] == 3
    assert train(tmp_path / "cut", **changes) == whole
    assert log_of(tmp_path / "cut") == log_of(tmp_path / "whole")
    assert [line["step"] for line in log_of(tmp_path / "whole")] == [3, 6, 8]


@pytest.mark.parametrize("gate", ["sigmoid", "hard_concrete"])
def test_micro_batches_change_rounding_only_and_resume_bit_for_bit(tmp_path: Path, gate: str) -> None:
    """Batches of 5 in parts of 2 and 3 and 1; a run that is cut and resumed with the same parts is the same run."""
    changes = {"steps": 4, "batch_size": 5, "mu": 0.1, "gate": gate}
    whole = train(tmp_path / "whole", **changes).tensor()
    parts = {n: train(tmp_path / str(n), micro_batch=n, **changes).tensor() for n in (1, 2, 3)}
    for found in parts.values():
        torch.testing.assert_close(found, whole, atol=1e-4, rtol=0)
    assert (whole - 0.95).abs().max() > 0.005  # fifty times the tolerance: they did train
    interrupt(tmp_path / "cut", after_steps=3, micro_batch=2, **changes)
    assert torch.equal(train(tmp_path / "cut", micro_batch=2, **changes).tensor(), parts[2])
    assert log_of(tmp_path / "cut") == log_of(tmp_path / "2")


def interrupt(out_dir: Path, after_steps: int, **changes: Any) -> None:
    """Train until update ``after_steps`` is done, and stop there."""
    real, calls = head_training._Trainer._step, 0

    def failing(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > after_steps:
            raise KeyboardInterrupt
        return real(*args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(head_training._Trainer, "_step", failing)
        with pytest.raises(KeyboardInterrupt):
            train(out_dir, **changes)


def test_a_run_that_needs_less_memory_may_resume_with_other_parts(tmp_path: Path) -> None:
    changes = {"steps": 6, "batch_size": 5, "checkpoint_every": 2}
    whole = train(tmp_path / "whole", **changes).tensor()
    interrupt(tmp_path / "cut", after_steps=3, **changes)
    saving = train(tmp_path / "cut", micro_batch=2, checkpoint_activations=True, **changes)
    torch.testing.assert_close(saving.tensor(), whole, atol=1e-4, rtol=0)
    assert [line["step"] for line in log_of(tmp_path / "cut")] == [2, 4, 6]
    assert (saving.settings["micro_batch"], saving.settings["checkpoint_activations"]) == (2, True)


def test_runs_killed_with_9_end_with_the_same_zeta(tmp_path: Path) -> None:
    settings = {**SHORT, "steps": 9, "checkpoint_every": 4, "mu": 0.1}
    # A run flushes the Gram matrices, five lines of the log, three checkpoints and the scores.
    deaths = [{"die_at_flush": 1}, *({"die_at_flush": n} for n in random.sample(range(2, 11), 2))]
    deaths += [{"die_at_step": n} for n in random.sample(range(1, 10), 2)]
    runs = [{"settings": settings, "out_dir": str(tmp_path / str(i)), **death} for i, death in enumerate(deaths)]
    again = [{"settings": settings, "out_dir": run["out_dir"]} for run in runs]
    whole = {"settings": settings, "out_dir": str(tmp_path / "whole")}
    job = tmp_path / "job.json"
    job.write_text(json.dumps({"dtype": "float32", "fork": True, "runs": [*runs, *again, whole]}))
    run([sys.executable, tiny_vqa.__file__, str(job)])
    exits = [run["exit"] for run in json.loads(job.read_text())["runs"]]
    assert exits == [-9] * len(deaths) + [0] * (len(deaths) + 1)

    expected = load_file(tmp_path / "whole/checkpoint.safetensors")
    for i, death in enumerate(deaths):
        resumed = load_file(tmp_path / str(i) / "checkpoint.safetensors")
        assert all(torch.equal(tensor, resumed[name]) for name, tensor in expected.items()), death
        for name in ("head-scores.json", "log.jsonl"):
            assert (tmp_path / str(i) / name).read_text() == (tmp_path / "whole" / name).read_text(), death
        assert not list((tmp_path / str(i)).glob(".*")), death


def test_two_processes_average_their_gradients(tmp_path: Path) -> None:
    """Two processes of 2 items see what one process of 4 sees; every item has two labels, so the means agree."""
    settings = {**SHORT, "steps": 4, "beta": 1.0, "gamma": 1.0, "mu": 0.1, "gate": "hard_concrete"}
    two_of_two = {"settings": {**settings, "batch_size": 2}, "out_dir": str(tmp_path / "two")}
    (tmp_path / "job.json").write_text(json.dumps({"dtype": "float64", "fork": False, "runs": [two_of_two]}))
    # The launcher's way to two processes on a CPU without MPI: its "multi GPU" mode, with the GPUs forbidden.
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    launch += ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    run([sys.executable, *launch, tiny_vqa.__file__, str(tmp_path / "job.json")])
    model = tiny_vlm(dtype=torch.float64)
    batches = TinyBatches(dtype=torch.float64)
    one = train_heads(
        model,
        adapter_for(model.config),
        batches,
        HeadTrainingSettings(**settings | {"batch_size": 4}),
        tmp_path / "one",
    )
    two = HeadScores.read(tmp_path / "two/head-scores.json")
    assert two.provenance["processes"] == 2
    # Gates are float32; Adam divides by the gradient's own size, which passes their relative error on.
    torch.testing.assert_close(two.tensor(), one.tensor(), atol=1e-5, rtol=0)
    for ours, theirs in zip(log_of(tmp_path / "one"), log_of(tmp_path / "two"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-6)


def run(command: list[str]) -> None:
    path = os.pathsep.join(p for p in sys.path if p)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_nan_in_a_batch_is_told_with_step_and_items(tmp_path: Path) -> None:
    items = batch_indices(29, 0, 9, 0)
    with pytest.raises(InfopruneError, match=r"step 2: the task loss .* items \[") as told:
        train(tmp_path, TinyBatches(nan_item=items[7]), beta=0, gamma=0, checkpoint_every=1)
    assert str(items[7]) in str(told.value)
    kept = load_file(tmp_path / "checkpoint.safetensors")
    assert all(tensor.isfinite().all() for tensor in kept.values())
    assert train(tmp_path, TinyBatches(), beta=0, gamma=0, checkpoint_every=1).method == "zeta"  # once mended


def test_nan_in_weights_is_told_with_the_block(tmp_path: Path) -> None:
    model = tiny_vlm()
    with torch.no_grad():
        model.model.visual.blocks[1].norm1.weight[3] = float("nan")
    with pytest.raises(InfopruneError, match="block 1: the head outputs are not finite on calibration batch 0"):
        train_heads(model, adapter_for(model.config), TinyBatches(), HeadTrainingSettings(**SHORT), tmp_path)
    assert not (tmp_path / "gram.safetensors").exists()


def test_another_runs_directory_is_refused(tmp_path: Path) -> None:
    train(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InfopruneError, match=r"its beta is 0\.3, here it is 1\.0"):
        train(tmp_path, beta=1.0)
    with pytest.raises(InfopruneError, match="its items is 29, here it is 7"):
        train(tmp_path, TinyBatches(7))
    other = tiny_vlm(seed=1)
    with pytest.raises(InfopruneError, match="its fingerprint"):
        train_heads(other, adapter_for(other.config), TinyBatches(), HeadTrainingSettings(**SHORT), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("name", ["checkpoint.safetensors", "gram.safetensors"])
def test_a_damaged_file_is_told(tmp_path: Path, name: str) -> None:
    train(tmp_path)
    whole = (tmp_path / name).read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"\xff" * 50):
        (tmp_path / name).write_bytes(damaged)
        with pytest.raises(InfopruneError, match=f"{name} is damaged"):
            train(tmp_path)


def test_an_empty_data_set_is_told(tmp_path: Path) -> None:
    with pytest.raises(InfopruneError, match="no items"):
        train(tmp_path / "run", TinyBatches(0))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"batch_size": 0},
        {"beta": -1.0},
        {"gamma": float("nan")},
        {"mu": float("inf")},
        {"lr": 0.0},
        {"tau": float("nan")},
        {"ks": "other"},
        {"gate": "other"},
        {"seed": -1},
        {"epoch_steps": 0},
        {"init_logit": float("inf")},
        {"micro_batch": 0},
    ],
)
def test_settings_that_cannot_be_are_told(wrong: dict[str, Any]) -> None:
    with pytest.raises(InfopruneError, match=next(iter(wrong))):
        HeadTrainingSettings(**wrong)
