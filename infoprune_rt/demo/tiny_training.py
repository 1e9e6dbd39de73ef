"""Training the tiny VLM: seeded, resumable, watched. ``make tiny-vlm`` runs this module.

Two phases: the tower alone learns to read crowded scenes (digit, colour and position at every merged
token: linear read-outs that are thrown away), then the whole model learns to answer. The recipe's
figures are in the model card beside the weights.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import matplotlib
import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

from infoprune_rt.demo.muon import Muon
from infoprune_rt.demo.tiny_batches import NOTHING, BatchMaker, TinyBatch
from infoprune_rt.demo.tiny_forward import AuxiliaryHeads, TinyForward, block_mask
from infoprune_rt.demo.tiny_vlm import build_config, build_model, build_processor
from infoprune_rt.errors import InfopruneError
from infoprune_rt.files import write_file, write_text
from infoprune_rt.hardware import fast_bfloat16


@dataclass(frozen=True)
class Phase:
    """Some steps with a warm-up of their own; the rate falls to ``final`` of its peak over the last 40 %."""

    name: Literal["tower", "joint"]
    steps: int
    learning_rate: float
    final: float
    warmup: int = 60

    def rate(self, step: int) -> float:
        """Learning rate of the phase's own step."""
        warm = min(1.0, (step + 1) / self.warmup)
        left = min(1.0, (self.steps - step) / (0.4 * self.steps))
        return self.learning_rate * warm * (self.final + (1 - self.final) * left)


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the result; a run directory only resumes under the same recipe."""

    seed: int = 0
    batch_size: int = 64
    phases: tuple[Phase, ...] = (
        Phase("tower", 800, 2e-3, final=0.5),
        Phase("joint", 2200, 2e-3, final=0.01),  # long: relations of position are learnt last
    )
    autocast: bool = field(default_factory=fast_bfloat16)  # products in bfloat16, where that is faster
    weight_decay: float = 0.05
    auxiliary_weight: float = 0.3
    clip: float = 1.0
    log_every: int = 50
    checkpoint_every: int = 50

    @property
    def steps(self) -> int:
        """Steps in all."""
        return sum(phase.steps for phase in self.phases)

    def at(self, step: int) -> tuple[Phase, int]:
        """The phase of a step, and the step's number within it."""
        for phase in self.phases:
            if step < phase.steps:
                return phase, step
            step -= phase.steps
        raise IndexError(step)


class _Steps(Dataset[TinyBatch]):
    """Training batches by step, so that a worker process can draw them ahead."""

    def __init__(self, batches: BatchMaker, recipe: Recipe) -> None:
        self.batches, self.recipe = batches, recipe

    def __getitem__(self, step: int) -> TinyBatch:
        crowded = self.recipe.at(step)[0].name == "tower"
        return self.batches.batch(step, self.recipe.batch_size, crowded)


class TinyTraining:
    """The model, its optimiser, and one step of either phase."""

    def __init__(self, recipe: Recipe) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.processor = build_processor()
        tokenizer = self.processor.tokenizer
        self.model = build_model(build_config(tokenizer))
        self.model.set_attn_implementation("eager")
        self.auxiliary = AuxiliaryHeads(self.model.config.text_config.hidden_size)
        self.batches = BatchMaker(tokenizer, recipe.seed, "train")
        # Watched while training only; the published accuracy comes from other scenes (seeds).
        self.watched = [BatchMaker(tokenizer, recipe.seed + 1, "test").batch(i, 64) for i in range(4)]
        self.forward = TinyForward(self.model)
        self.merged_tokens = torch.compile(self.forward.merged_tokens)
        self.text_states = torch.compile(self.forward.text_states)
        self.optimizers = _optimizers(self.model, self.auxiliary, recipe)

    def step(self, step: int, batch: TinyBatch) -> dict[str, float]:
        """One optimiser step; returns what the log shows."""
        phase, within = self.recipe.at(step)
        with self._autocast():
            merged = self.merged_tokens(batch.patches)
            auxiliary = self.auxiliary(merged, batch)
            if phase.name == "tower":
                loss, shown = auxiliary, {}
            else:
                answers = self._answer_loss(merged, batch)
                loss, shown = answers + self.recipe.auxiliary_weight * auxiliary, {"answers": answers.item()}
        if not torch.isfinite(loss):
            raise InfopruneError(f"the loss is not finite at step {step}; lower the learning rate or change the seed")
        loss.backward()
        nn.utils.clip_grad_norm_(list(self._parameters()), self.recipe.clip)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = phase.rate(within)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return {"auxiliary": auxiliary.item(), **shown}

    def _autocast(self) -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.autocast)

    def _parameters(self) -> Iterator[nn.Parameter]:
        yield from self.model.parameters()
        yield from self.auxiliary.parameters()

    def _states(self, merged: Tensor, batch: TinyBatch) -> Tensor:
        cos, sin = self.model.model.language_model.rotary_emb(merged, batch.positions)
        mask = block_mask(batch.segments, merged.dtype)
        states: Tensor = self.text_states(merged, batch.ids, mask, cos, sin)
        return states

    def _answer_loss(self, merged: Tensor, batch: TinyBatch) -> Tensor:
        chosen = batch.labels >= 0
        logits = self.model.lm_head(self._states(merged, batch)[chosen])
        return F.cross_entropy(logits.float(), batch.labels[chosen])

    @torch.no_grad()
    def watch(self) -> dict[str, float]:
        """On the watched scenes: share of digits read right, and of questions whose every answer token is right."""
        right = asked = read = digits = 0
        for batch in self.watched:
            with self._autocast():
                merged = self.merged_tokens(batch.patches)
                reading = self.auxiliary.digits(merged)
                predicted = self.model.lm_head(self._states(merged, batch)).argmax(-1)
            shown = batch.digits != NOTHING
            read += int(((reading == batch.digits) & shown).sum())
            digits += int(shown.sum())
            wrong = (predicted != batch.labels) & (batch.labels >= 0)
            failed = {(int(i), int(batch.segments[i, j])) for i, j in wrong.nonzero()}
            count = int(batch.segments.max(dim=1).values.sum())
            right, asked = right + count - len(failed), asked + count
        return {"digits read": read / digits, "accuracy": right / asked}

    def state(self) -> dict[str, Tensor]:
        """All tensors that a resumed run needs."""
        tensors = {
            f"model.{name}": value for name, value in self.model.state_dict().items() if name != "lm_head.weight"
        }
        tensors |= {f"auxiliary.{name}": value for name, value in self.auxiliary.state_dict().items()}
        for i, optimizer in enumerate(self.optimizers):
            for index, entries in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer{i}.{index}.{key}": value for key, value in entries.items()}
        return {name: value.clone() for name, value in tensors.items()}

    def load_state(self, tensors: dict[str, Tensor]) -> None:
        """Undo ``state``."""
        parts: dict[str, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            part, rest = name.split(".", 1)
            parts.setdefault(part, {})[rest] = value
        self.model.load_state_dict(parts["model"], strict=False)
        self.auxiliary.load_state_dict(parts["auxiliary"])
        for i, optimizer in enumerate(self.optimizers):
            entries: dict[int, dict[str, Tensor]] = {}
            for name, value in parts.get(f"optimizer{i}", {}).items():
                index, key = name.split(".")
                entries.setdefault(int(index), {})[key] = value
            optimizer.load_state_dict({**optimizer.state_dict(), "state": entries})


def _optimizers(model: nn.Module, auxiliary: nn.Module, recipe: Recipe) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the matrices inside transformer blocks, AdamW for everything else."""
    names = {f"model.{name}": p for name, p in model.named_parameters()}
    names |= {f"auxiliary.{name}": p for name, p in auxiliary.named_parameters()}
    inside = [p for name, p in names.items() if p.ndim == 2 and (".blocks." in name or ".layers." in name)]
    known = {id(p) for p in inside}
    rest = [p for p in names.values() if id(p) not in known]
    groups = [
        {"params": [p for p in rest if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=(0.9, 0.98)), Muon(inside, weight_decay=recipe.weight_decay)


def train(recipe: Recipe, run_dir: Path, out_dir: Path) -> None:
    """Train to the end, resuming from ``run_dir`` if it holds a checkpoint; write the model to ``out_dir``."""
    training = TinyTraining(recipe)
    start, log = _resume(training, run_dir)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        task = progress.add_task("compiling", total=recipe.steps, completed=start)
        began = time.perf_counter()
        batches = DataLoader(
            _Steps(training.batches, recipe),
            batch_size=None,
            sampler=range(start, recipe.steps),
            num_workers=1,
            prefetch_factor=4,
        )
        for step, batch in enumerate(batches, start=start):
            shown = training.step(step, batch)
            done = step + 1
            if done % recipe.log_every == 0 or done == recipe.steps:
                log.append(
                    {"step": done, **shown, **training.watch(), "seconds": round(time.perf_counter() - began, 1)}
                )
                told = " ".join(
                    f"{key} {value:.3f}" for key, value in log[-1].items() if key not in ("step", "seconds")
                )
                progress.update(task, description=told)
            if done % recipe.checkpoint_every == 0 or done == recipe.steps:
                _checkpoint(training, run_dir, done, log)
            progress.update(task, completed=done)
    _export(training, out_dir)


def _resume(training: TinyTraining, run_dir: Path) -> tuple[int, list[dict[str, float]]]:
    path = run_dir / "progress.json"
    if not path.exists():
        return 0, []
    progress = json.loads(path.read_text())
    if progress["recipe"] != json.loads(json.dumps(asdict(training.recipe))):
        raise InfopruneError(f"{run_dir} holds a run of another recipe; choose another directory or remove it")
    training.load_state(load_file(run_dir / progress["state"]))
    return progress["step"], progress["log"]


def _checkpoint(training: TinyTraining, run_dir: Path, step: int, log: list[dict[str, float]]) -> None:
    """Tensors first, then the small file that points to them: killed in between, the old pair stands."""
    name = f"state-{step}.safetensors"
    write_file(run_dir / name, lambda aside: save_file(training.state(), aside))
    progress = {"step": step, "state": name, "recipe": asdict(training.recipe), "log": log}
    write_text(run_dir / "progress.json", json.dumps(progress, indent=1))
    for old in run_dir.glob("state-*.safetensors"):
        if old.name != name:
            old.unlink()
    if log:
        _plot(log, run_dir / "curves.png")


def _plot(log: list[dict[str, float]], path: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, left = plt.subplots(figsize=(7, 4))
    for key in ("auxiliary", "answers"):
        rows = [row for row in log if key in row]
        left.plot([row["step"] for row in rows], [row[key] for row in rows], label=f"loss: {key}")
    right = left.twinx()
    for key, style in (("digits read", ":"), ("accuracy", "-")):
        right.plot([row["step"] for row in log], [row[key] for row in log], style, color="black", label=key)
    left.set(xlabel="step", ylabel="loss", yscale="log")
    right.set(ylabel="share right on held-out handwriting", ylim=(0, 1))
    figure.legend(loc="upper center", ncols=4)
    write_file(path, lambda aside: figure.savefig(aside, format="png", dpi=120))
    plt.close(figure)


def _export(training: TinyTraining, out_dir: Path) -> None:
    """The model as bfloat16 safetensors, with its processor, as ``from_pretrained`` expects them."""
    training.model.set_attn_implementation("sdpa")
    training.model.to(torch.bfloat16).save_pretrained(out_dir)
    training.processor.save_pretrained(out_dir)


def main(
    run_dir: Annotated[Path, typer.Option(help="Checkpoints, log and curves; give it again to resume.")] = Path(
        "runs/tiny-vlm"
    ),
    out: Annotated[Path, typer.Option(help="Where the finished model goes.")] = Path("runs/tiny-vlm/model"),
    seed: Annotated[int, typer.Option(help="Weights and scenes both follow from it.")] = 0,
) -> None:
    """Train the tiny VLM from scratch (about an hour on 2 cores)."""
    train(Recipe(seed=seed), run_dir, out)


if __name__ == "__main__":
    typer.run(main)
