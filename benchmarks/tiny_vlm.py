"""The tiny VLM measured in full: baselines, three gate seeds, ways to choose heads, the paper's recipe over epsilon.

Writes benchmarks/results/<machine>/tiny_vlm.json; ``make report`` turns result files into tables. Held-out scenes
here are others than those watched in training and those of the demo.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import numpy as np
import torch
import typer
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from infoprune_rt.benchmarking.environment import command, environment, machine_name
from infoprune_rt.benchmarking.targets import Target
from infoprune_rt.demo.handwriting import read_handwriting, write_handwriting
from infoprune_rt.demo.scenes import ask, draw_scene
from infoprune_rt.demo.tiny_vlm import SHIPPED
from infoprune_rt.demo.variants import Workbench
from infoprune_rt.evaluation.answering import Answer
from infoprune_rt.evaluation.dataset import VQADataset
from infoprune_rt.evaluation.report import accuracy, evaluate
from infoprune_rt.evaluation.training_batches import VQABatches
from infoprune_rt.files import write_text
from infoprune_rt.model_loading import load_dense_vlm
from infoprune_rt.plan import FFNPlan
from infoprune_rt.pruning.head_methods import score_heads
from infoprune_rt.pruning.head_scores import ScoreMethod
from infoprune_rt.pruning.head_training import HeadTrainingSettings
from infoprune_rt.pruning.selection import budget, threshold

CALIBRATION, TEST = (300, 11), (1000, 12)  # scenes and seed
GATES = HeadTrainingSettings(steps=200, batch_size=32, beta=0.3, gamma=0.3)  # the paper's loss
WITH_BUDGET = "zeta with budget term"
WAYS: dict[str, tuple[ScoreMethod, HeadTrainingSettings]] = {
    "zeta": ("zeta", GATES),
    WITH_BUDGET: ("zeta", replace(GATES, mu=0.5)),
    "random": ("random", GATES),
    "michel": ("michel", replace(GATES, steps=20)),
    "magnitude": ("magnitude", GATES),  # the same whatever the seed
}
KEEP, NEURONS = 0.5, 192
EPSILONS = (0.001, 0.005, 0.01, 0.05)


class Study:
    """One model, one calibration set, one test set; every measurement adds a row."""

    def __init__(self, folder: Path, scenes: int, console: Console) -> None:
        self.folder, self.console = folder, console
        self.vlm = load_dense_vlm(SHIPPED)
        write_handwriting(folder / "calibration", "train", *CALIBRATION)
        write_handwriting(folder / "test", "test", scenes, TEST[1])
        self.calibration, self.test = (read_handwriting(folder / name) for name in ("calibration", "test"))
        self.bench = Workbench(self.vlm, self.calibration.image_paths)
        self.dense = self.bench.sizes(self.bench.dense, 64)
        self.rows: list[dict[str, Any]] = []

    def add(
        self, group: str, name: str, scores: dict[str, Any], sizes: dict[str, Any] | None = None, **extra: Any
    ) -> None:
        """One row: accuracy by family, and what is left of the tower's blocks."""
        sizes = sizes or self.dense
        shown = {key: round(value, 2) for key, value in scores.items() if isinstance(value, float)}
        left = sizes["parameters"] / self.dense["parameters"]
        kept = {key: sizes[key] for key in ("heads_per_block", "ffn_per_block")}
        self.rows.append({"group": group, "name": name, "accuracy": shown, "parameters_left": left, **kept, **extra})
        self.console.print(f"{group}: {name}: {shown['overall']:.2f} % with {left:.0%} of the blocks' parameters")

    def answered(self, dataset: VQADataset | None = None) -> dict[str, Any]:
        """The model as it stands now, on the test questions."""
        questions = self.test if dataset is None else dataset
        return evaluate(self.vlm.model, self.vlm.processor, questions, batch_size=128, progress=False)

    def plan(self, group: str, name: str, masks: Tensor | None, ffn: FFNPlan | None, **options: Any) -> None:
        """Compress by a plan and measure."""
        extra = {key: options.pop(key) for key in ("seed", "epsilon") if key in options}
        variant = self.bench.variant(name, name, self.bench.plan(masks, ffn, **options))
        errors = [block.ffn.held_out_error for block in variant.applied.plan.blocks]
        with self.bench.in_place(variant.tower):
            self.add(group, name, self.answered(), self.bench.sizes(variant.tower, 64), held_out_errors=errors, **extra)

    # -- baselines: what accuracy costs nothing

    def baselines(self) -> None:
        """What is left without images, with wrong images, without FFNs, without attention."""
        self.add("baselines", "dense", self.answered())
        best, prior = _question_priors()
        majority = [Answer(e.question_id, best) for e in self.test]
        self.add("baselines", "majority answer", accuracy(self.test, majority, "official"))
        blind = [Answer(e.question_id, prior.get(e.question, best)) for e in self.test]
        self.add("baselines", "question only", accuracy(self.test, blind, "official"))
        self.add("baselines", "shuffled images", self.answered(_shuffled(self.test)))
        blocks = self.bench.adapter.blocks(self.bench.dense)
        for name, modules in (
            ("all FFNs skipped", [b.ffn for b in blocks]),
            ("all attention skipped", [b.out_proj for b in blocks]),
        ):
            handles = [module.register_forward_hook(_silence) for module in modules]
            self.add("baselines", name, self.answered())
            for handle in handles:
                handle.remove()

    # -- heads and FFNs

    def gates(self, seed: int) -> None:
        """What depends on a seed: every way to choose half the heads, and the paper's recipe."""
        batches = VQABatches(self.calibration, self.vlm.processor)
        scores = {
            name: score_heads(
                method,
                self.vlm.model,
                self.vlm.adapter,
                batches,
                replace(settings, seed=seed),
                self.folder / f"{name}-{seed}",
                Accelerator(cpu=True),
            )
            for name, (method, settings) in WAYS.items()
            if seed == 0 or name != "magnitude"
        }
        neurons = FFNPlan(mode="neurons", size=NEURONS)
        for method, found in scores.items():
            masks = budget(found, KEEP)
            self.plan("heads 50 %", method, masks, None, refit=False, seed=seed)
            self.plan("heads 50 %, refit", method, masks, None, seed=seed)
            self.plan("heads 50 %, refit, neurons", method, masks, neurons, seed=seed)
        below = threshold(scores["zeta"], 0.5)
        self.plan("paper", "zeta < 0.5, FFNs dense", below, None, refit=False, sequential=False, seed=seed)
        for epsilon in EPSILONS if seed == 0 else EPSILONS[:1]:
            form = FFNPlan(mode="taylor", epsilon=epsilon, bias="taylor")
            self.plan(
                "paper",
                f"zeta < 0.5, taylor {epsilon}",
                below,
                form,
                refit=False,
                sequential=False,
                seed=seed,
                epsilon=epsilon,
            )

    def ffns(self) -> None:
        """FFNs alone, by mode."""
        for size in (256, 192, 128):
            self.plan("FFN only", f"neurons {size}", None, FFNPlan(mode="neurons", size=size))
        for size in (192, 128):
            self.plan("FFN only", f"hybrid {size}", None, FFNPlan(mode="hybrid", size=size))
        self.plan("FFN only", "rrr 128", None, FFNPlan(mode="rrr", size=128))
        linear = FFNPlan(mode="taylor", size=128)
        self.plan("FFN only", "taylor 128, mean bias", None, linear, sequential=False)
        for limit in (0.02, 0.05, 0.1):
            form = FFNPlan(mode="rrr", size=96, max_error=limit)
            self.plan("FFN only", f"rrr 96 where held-out error <= {limit}", None, form)


def _silence(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return torch.zeros_like(output)


def _question_priors() -> tuple[str, dict[str, str]]:
    """From training scenes: the commonest answer, and the commonest one to each question."""
    rng = np.random.default_rng(99)
    counts: dict[str, Counter[str]] = {}
    for _ in range(4000):
        for question in ask(rng, draw_scene(rng, "train")[1]):
            counts.setdefault(question.text, Counter())[question.answer] += 1
    total = sum(counts.values(), Counter())
    return total.most_common(1)[0][0], {text: c.most_common(1)[0][0] for text, c in counts.items()}


def _shuffled(dataset: VQADataset) -> VQADataset:
    """Every question with the next scene's picture."""
    paths = dataset.image_paths
    following = dict(zip(paths, paths[1:] + paths[:1], strict=True))
    return VQADataset([replace(e, image_path=following[e.image_path]) for e in dataset])


def _targets(rows: list[dict[str, Any]]) -> list[Target]:
    """A base worth pruning; at least 60 % fewer parameters at no more than 1.5 points; zeta above the controls."""

    def found(group: str, name: str, key: str = "overall") -> list[float]:
        chosen = [row for row in rows if row["group"] == group and row["name"] == name]
        return [row["accuracy"]["overall"] if key == "overall" else row[key] for row in chosen]

    (dense,) = found("baselines", "dense")
    ours = "heads 50 %, refit, neurons"
    targets = [
        Target("dense accuracy", dense, at_least=93.0),
        Target("ours: points lost, mean of seeds", dense - fmean(found(ours, "zeta")), at_most=1.5),
        Target("ours: share of parameters removed", 1 - max(found(ours, "zeta", "parameters_left")), at_least=0.6),
    ]
    for group in ("heads 50 %", "heads 50 %, refit", ours):
        for control in ("random", "magnitude"):
            lead = fmean(found(group, "zeta")) - fmean(found(group, control))
            targets.append(Target(f"{group}: points of zeta over {control}", lead, at_least=0.0))
    return targets


def main(
    scenes: Annotated[int, typer.Option(help="Held-out scenes of 8 questions.")] = TEST[0],
    seeds: Annotated[int, typer.Option(help="Gate seeds.")] = 3,
    out: Annotated[Path | None, typer.Option("--json", help="Another result file.")] = None,
) -> None:
    """Measure the shipped tiny VLM in full; exits with status 1 if a target is missed."""
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        study = Study(Path(folder), scenes, console)
        study.baselines()
        study.ffns()
        for seed in range(seeds):
            study.gates(seed)
    targets = _targets(study.rows)
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(),
        "environment": environment(),
        "scenes": scenes,
        "questions": len(study.test),
        "targets": [target.to_dict() for target in targets],
        "rows": study.rows,
    }
    path = out or Path(__file__).parent / "results" / machine_name() / "tiny_vlm.json"
    write_text(path, json.dumps(result, indent=1) + "\n")
    table = Table(title=f"tiny VLM, {len(study.test)} held-out questions")
    for name in ("group", "name", "parameters left", "VQA", "text", "relations", "all"):
        table.add_column(name)
    for row in study.rows:
        scores = (f"{row['accuracy'][key]:.1f}" for key in ("vqa", "text", "relations", "overall"))
        table.add_row(row["group"], row["name"], f"{row['parameters_left']:.0%}", *scores)
    console.print(table)
    for target in targets:
        console.print(str(target))
    raise typer.Exit(int(not all(target.met for target in targets)))


if __name__ == "__main__":
    typer.run(main)
