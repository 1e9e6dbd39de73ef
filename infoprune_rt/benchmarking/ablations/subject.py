"""What is ablated: a model, its calibration data, its test data; and what one measurement on it says."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from infoprune_rt.benchmarking.ablations.options import Options
from infoprune_rt.compression import make_plan
from infoprune_rt.demo.variants import Variant, Workbench
from infoprune_rt.evaluation.answering import Answer, answer
from infoprune_rt.evaluation.dataset import VQADataset, VQAExample
from infoprune_rt.evaluation.report import accuracy, score
from infoprune_rt.evaluation.training_batches import VQABatches
from infoprune_rt.model_loading import LoadedVLM
from infoprune_rt.plan import FFNPlan, Plan
from infoprune_rt.pruning.head_checkpoint import fingerprint
from infoprune_rt.pruning.head_gates import TowerHeads
from infoprune_rt.towers.base import TowerShape


@dataclass(frozen=True)
class Data:
    """Questions to learn zeta from, whose first pictures calibrate the fits; and questions to test on."""

    calibration: VQADataset
    test: VQADataset


class Subject:
    """``name`` is how tables and captions call the model; ``work`` is where learnt scores and pictures are kept."""

    def __init__(self, name: str, vlm: LoadedVLM, data: Data, options: Options, work: Path) -> None:
        self.name, self.vlm, self.data, self.options, self.work = name, vlm, data, options, work
        self.learnt, self.pictures = work / "heads", work / "pictures"
        self.bench = self.bench_on(data.calibration)
        self.used_blocks = vlm.adapter.used_blocks(vlm.model.config)

    def bench_on(self, calibration: VQADataset) -> Workbench:
        """A bench whose fits see the first pictures of this data set."""
        options = self.options
        return Workbench(self.vlm, calibration.image_paths[: options.calibration_pictures], options.picture_batch)

    @property
    def shape(self) -> TowerShape:
        """The dense tower's sizes."""
        return self.bench.shape

    @cached_property
    def heads(self) -> TowerHeads:
        """The dense tower's heads."""
        return TowerHeads.of(self.vlm.model, self.vlm.adapter)

    @cached_property
    def batches(self) -> VQABatches:
        """The calibration questions as training batches."""
        return VQABatches(self.data.calibration, self.vlm.processor)

    @property
    def accelerator(self) -> Accelerator:
        """One process on the model's own device."""
        return Accelerator(cpu=self.vlm.model.device.type == "cpu")

    def identity(self) -> dict[str, Any]:
        """Whatever else rows depend on besides the options."""
        test = VQABatches(self.data.test, self.vlm.processor)
        tower = fingerprint(self.heads.blocks)
        return {"model": self.name, "tower": tower, "calibration data": self.batches.digest, "test data": test.digest}

    def plan(
        self,
        masks: Tensor | None = None,
        ffn: FFNPlan | None = None,
        *,
        dense_blocks: Collection[int] = (),
        refit: bool = True,
        sequential: bool = True,
    ) -> Plan:
        """A plan for this tower; see ``make_plan``. Blocks that the model does not read from stay as they are."""
        return make_plan(
            self.vlm.adapter.architecture,
            self.shape,
            masks=masks,
            ffn=ffn,
            dense_blocks=dense_blocks,
            used_blocks=self.used_blocks,
            refit=refit,
            sequential=sequential,
        )

    def measured(self, variant: Variant, test: VQADataset | None = None) -> dict[str, Any]:
        """Accuracy of the model with this tower, and what is left of the tower's blocks."""
        with self.bench.in_place(variant.tower):
            scores = self.scores(test)
        errors = [block.ffn.held_out_error for block in variant.applied.plan.blocks]
        sizes = [block.ffn.fitted_size for block in variant.applied.plan.blocks]
        return {**scores, **self._left(variant.tower), "ffn_sizes": sizes, "held_out_errors": errors}

    def dense(self, test: VQADataset | None = None) -> dict[str, Any]:
        """The same of the model as it is."""
        return {**self.scores(test), **self._left(self.bench.dense)}

    @torch.inference_mode()
    def scores(self, test: VQADataset | None = None) -> dict[str, Any]:
        """Accuracy in % by family (``accuracy``) and by question type (``types``: percent and number of questions)."""
        questions = self.data.test if test is None else test
        model, processor = self.vlm.model, self.vlm.processor
        answers = answer(model, processor, questions, self.options.answer_batch, progress=False)
        found = accuracy(questions, answers, "official")
        return {
            "accuracy": {name: round(value, 2) for name, value in found.items() if isinstance(value, float)},
            "types": by_type(questions, answers),
        }

    def _left(self, tower: nn.Module) -> dict[str, Any]:
        sizes, dense = (self.bench.sizes(each, 1) for each in (tower, self.bench.dense))
        kept = {key: sizes[key] for key in ("heads_per_block", "ffn_per_block")}
        return {"parameters_left": sizes["parameters"] / dense["parameters"], **kept}


def type_of(example: VQAExample) -> str:
    """The data set's own question type; where it gives none (TextVQA), the task family."""
    return example.question_type or example.family


def by_type(questions: VQADataset, answers: list[Answer]) -> dict[str, dict[str, float]]:
    """Percent right and number of questions of every type; the numbers add up to the data set."""
    found: dict[str, list[float]] = {}
    for example, given in zip(questions, answers, strict=True):
        found.setdefault(type_of(example), []).append(score(example, given.text or "", "official"))
    return {
        name: {"accuracy": round(100 * fmean(values), 2), "questions": len(values)}
        for name, values in sorted(found.items())
    }
