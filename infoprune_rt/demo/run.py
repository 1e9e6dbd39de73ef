"""``make demo``: the whole method on the tiny VLM, then the 7B's tower at full size."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table
from torch import nn

from infoprune_rt.benchmarking.environment import environment
from infoprune_rt.benchmarking.timing import interleaved, percentiles
from infoprune_rt.checkpoint import is_replaceable, save_vlm
from infoprune_rt.demo.fullsize import measure
from infoprune_rt.demo.handwriting import read_handwriting, write_handwriting
from infoprune_rt.demo.report_html import write_report_html
from infoprune_rt.demo.tiny_vlm import SHIPPED
from infoprune_rt.demo.variants import Variant, Workbench
from infoprune_rt.errors import InfopruneError
from infoprune_rt.evaluation.dataset import VQADataset
from infoprune_rt.evaluation.report import evaluate
from infoprune_rt.evaluation.training_batches import VQABatches
from infoprune_rt.files import write_text
from infoprune_rt.hardware import compute_dtype
from infoprune_rt.model_loading import load_any_vlm, load_dense_vlm
from infoprune_rt.plan import FFNPlan
from infoprune_rt.pruning.head_methods import score_heads
from infoprune_rt.pruning.head_scores import HeadScores
from infoprune_rt.pruning.head_training import HeadTrainingSettings
from infoprune_rt.pruning.selection import budget, threshold
from infoprune_rt.vlm import rest_of_vlm

CALIBRATION_SEED, TEST_SEED = 1, 2
KEEP, NEURONS, ZETA_THRESHOLD, EPSILON = 0.5, 192, 0.5, 0.001
OURS = "both"
MARK = ".infoprune-demo"  # a directory with this file was filled by a demo
WRITTEN = ("data", "heads", "compact", "report.json", "report.html")


@dataclass(frozen=True)
class DemoSize:
    """How much of everything; the defaults take about four minutes on two cores."""

    calibration_scenes: int = 300
    test_scenes: int = 200
    head_steps: int = 100
    fullsize_blocks: int = 32
    repeats: int = 2

    @property
    def heads(self) -> HeadTrainingSettings:
        """The paper's loss: task + eRank + KS."""
        return HeadTrainingSettings(steps=self.head_steps, batch_size=32, beta=0.3, gamma=0.3, seed=0)


def run_demo(out: Path, quiet: bool = False, size: DemoSize | None = None) -> dict[str, Any]:
    """Run everything, write ``report.json``, ``report.html`` and the checkpoint into ``out``; the report."""
    console = Console(quiet=quiet)
    logging.getLogger("transformers").setLevel(logging.ERROR)
    _clear(out)
    report = _Demo(out, console, size or DemoSize()).run()
    write_text(out / "report.json", json.dumps(report, indent=1) + "\n")
    write_report_html(report, out / "report.html")
    _show(report, console)
    console.print(f"written: {out / 'report.html'} (open it in a browser), report.json, and the compact model")
    return report


def _clear(out: Path) -> None:
    """Make room for a new run; only what an earlier run left may go."""
    found = sorted(path.name for path in out.iterdir() if not path.name.startswith(".")) if out.exists() else []
    foreign = [name for name in found if name not in WRITTEN or not (out / MARK).exists()]
    if foreign:
        raise InfopruneError(f"{out} holds {foreign[0]!r}, which no demo wrote; choose another --out")
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / MARK).touch()


class _Demo:
    def __init__(self, out: Path, console: Console, size: DemoSize) -> None:
        self.out, self.console, self.size = out, console, size
        self.vlm = load_dense_vlm(SHIPPED)
        with self._said("drawing scenes from real handwritten digits"):
            write_handwriting(out / "data" / "calibration", "train", size.calibration_scenes, CALIBRATION_SEED)
            write_handwriting(out / "data" / "test", "test", size.test_scenes, TEST_SEED)
        self.calibration = read_handwriting(out / "data" / "calibration")
        self.test = read_handwriting(out / "data" / "test")
        self.bench = Workbench(self.vlm, self.calibration.image_paths)

    def _said(self, what: str) -> AbstractContextManager[Any]:
        return self.console.status(what)

    def run(self) -> dict[str, Any]:
        """All steps; returns the report."""
        scores = self._scores()
        masks = budget(scores, KEEP)
        with self._said("compressing in seven ways"):
            variants = self._variants(scores)
            error = self.bench.masked_error(masks)
        rows = self._rows(variants)
        taylor = next(variant for variant in variants if variant.name == "paper").applied
        by_name = {row["name"]: row for row in rows}
        shape = self.bench.shape
        return {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": "infoprune demo",
            "environment": environment(),
            "model": {
                "blocks": shape.num_blocks,
                "width": shape.width,
                "num_heads": shape.num_heads,
                "head_dim": shape.head_dim,
                "ffn_width": shape.ffn_width,
                "patches": self._patches(),
            },
            "settings": {
                "calibration_scenes": self.size.calibration_scenes,
                "test_scenes": self.size.test_scenes,
                "questions": len(self.test),
                "head_training": asdict(self.size.heads),
                "keep": KEEP,
                "neurons": NEURONS,
                "z": ZETA_THRESHOLD,
                "epsilon": EPSILON,
            },
            "dense": _summary(by_name["dense"]),
            "compact": _summary(by_name[OURS]),
            "variants": rows,
            "heads_per_block": by_name[OURS]["heads_per_block"],
            "ranks_per_block": [ffn["size"] for ffn in by_name[OURS]["ffn_per_block"]],
            "zeta": scores.scores,
            "taylor": {
                "epsilon": EPSILON,
                "ranks": [block.ffn.fitted_size if block.ffn.kind != "dense" else None for block in taylor.plan.blocks],
                "discarded_energy": [[] if spectrum is None else _discarded(spectrum) for spectrum in taylor.spectra],
            },
            "masked_vs_compact_max_error": error,
            "fullsize": self._fullsize(),
        }

    def _patches(self) -> int:
        return int(next(iter(self.bench.batches))["grid_thw"][0].prod())

    def _scores(self) -> HeadScores:
        batches = VQABatches(self.calibration, self.vlm.processor)
        on_cpu = Accelerator(cpu=True)  # like everything else here: a demo compares on one device
        return score_heads(
            "zeta", self.vlm.model, self.vlm.adapter, batches, self.size.heads, self.out / "heads", on_cpu
        )

    def _variants(self, scores: HeadScores) -> list[Variant]:
        bench = self.bench
        masks = budget(scores, KEEP)
        chance = score_heads(
            "random",
            self.vlm.model,
            self.vlm.adapter,
            VQABatches(self.calibration, self.vlm.processor),
            self.size.heads,
            self.out / "heads" / "random",
        )
        below = threshold(scores, ZETA_THRESHOLD)
        neurons = FFNPlan(mode="neurons", size=NEURONS)
        taylor = FFNPlan(mode="taylor", epsilon=EPSILON, bias="taylor")
        return [
            bench.variant("heads", "ζ heads, refit", bench.plan(masks)),
            bench.variant("ffn", "FFN neurons, refit", bench.plan(ffn=neurons)),
            bench.variant(OURS, "ours: heads and FFN", bench.plan(masks, neurons)),
            bench.variant(
                "paper_heads", f"paper: ζ < {ZETA_THRESHOLD}", bench.plan(below, refit=False, sequential=False)
            ),
            bench.variant(
                "paper", f"paper: ζ, Taylor ε = {EPSILON}", bench.plan(below, taylor, refit=False, sequential=False)
            ),
            bench.variant("random", "control: random heads, FFN", bench.plan(budget(chance, KEEP), neurons)),
        ]

    def _rows(self, variants: list[Variant]) -> list[dict[str, Any]]:
        towers: dict[str, nn.Module] = {"dense": self.bench.dense} | {v.name: v.tower for v in variants}
        labels = {"dense": "dense"} | {v.name: v.label for v in variants}
        self._write_and_reload(next(v for v in variants if v.name == OURS))
        times = self._times(towers)
        rows = []
        for name, tower in towers.items():
            with self._said(f"answering {len(self.test)} questions: {labels[name]}"):
                accuracy = self._reloaded() if name == OURS else self._accuracy(tower, self.test)
            sizes = self.bench.sizes(tower, self._patches())
            rows.append(
                {
                    "name": name,
                    "label": labels[name],
                    "accuracy": accuracy,
                    "latency_ms": percentiles(times[name]),
                    **sizes,
                }
            )
        return rows

    def _times(self, towers: dict[str, nn.Module]) -> dict[str, list[float]]:
        """The towers on one batch of 32 scenes, in turns."""
        inputs = next(iter(self.bench.batches))

        def run(tower: nn.Module) -> Callable[[], object]:
            return lambda: tower(**inputs)

        with self._said("timing the tiny towers"), torch.inference_mode():
            return interleaved({name: run(tower) for name, tower in towers.items()}, repeats=15, warmup=2)

    def _accuracy(self, tower: nn.Module, dataset: VQADataset) -> dict[str, float]:
        with self.bench.in_place(tower):
            return _families(evaluate(self.vlm.model, self.vlm.processor, dataset, batch_size=128, progress=False))

    def _write_and_reload(self, ours: Variant) -> None:
        plan = ours.applied.plan
        save_vlm(
            self.out / "compact",
            self.vlm.model.config,
            ours.tower.config,
            ours.tower.state_dict(),
            rest_of_vlm(self.vlm.model),
            plan,
            SHIPPED,
            overwrite=is_replaceable(self.out / "compact"),
        )

    def _reloaded(self) -> dict[str, float]:
        """What the checkpoint on disk answers, not the tower in memory."""
        loaded = load_any_vlm(self.out / "compact")
        return _families(evaluate(loaded.model, loaded.processor, self.test, batch_size=128, progress=False))

    def _fullsize(self) -> dict[str, Any]:
        dtype = compute_dtype(torch.bfloat16, torch.device("cpu"))
        with self._said(f"the Qwen2-VL-7B tower, full size, random weights, {dtype}: compacting and timing"):
            return measure(dtype, self.size.repeats, self.size.fullsize_blocks)


def _summary(row: dict[str, Any]) -> dict[str, Any]:
    return {key: row[key] for key in ("accuracy", "parameters", "flops", "latency_ms")}


def _families(result: dict[str, Any]) -> dict[str, float]:
    return {key: round(result[key], 2) for key in ("vqa", "text", "relations", "overall")}


def _discarded(singular_values: torch.Tensor) -> list[float]:
    """Share of the squared spectrum beyond rank k, for k = 0..d."""
    energy = singular_values.double().square()
    left = energy.flip(0).cumsum(0).flip(0) / energy.sum()
    return [round(value, 9) for value in [*left.tolist(), 0.0]]


def _show(report: dict[str, Any], console: Console) -> None:
    table = Table(title="tiny VLM on held-out handwriting: accuracy in %, the tower's blocks, 32 scenes' latency")
    for name in ("", "VQA", "text", "relations", "all", "parameters", "FLOPs", "ms"):
        table.add_column(name, justify="left" if not name else "right")
    dense = report["dense"]
    for row in report["variants"]:
        accuracy = row["accuracy"]
        table.add_row(
            row["label"],
            *(f"{accuracy[family]:.1f}" for family in ("vqa", "text", "relations", "overall")),
            f"{row['parameters'] / dense['parameters']:.0%}",
            f"{row['flops'] / dense['flops']:.0%}",
            f"{row['latency_ms']['p50']:.1f}",
        )
    console.print(table)
    full = report["fullsize"]
    console.print(
        f"{full['model']}, {full['patches']} patches, {full['dtype']}: "
        f"dense {full['dense_ms']:.0f} ms, compact {full['compact_ms']:.0f} ms, {full['speedup']:.1f}x; "
        f"compacted in {full['compaction_seconds']:.0f} s"
    )
