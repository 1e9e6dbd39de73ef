"""The compressions that the demo and the benchmarks compare, all on one model, one data set, one set of scores."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from infoprune_rt.compression import build_compact, make_plan
from infoprune_rt.evaluation.images import TowerBatches, tower_batches
from infoprune_rt.model_loading import LoadedVLM
from infoprune_rt.plan import FFNPlan, Plan
from infoprune_rt.pruning.apply import Applied, apply_plan
from infoprune_rt.pruning.head_gates import mask_heads
from infoprune_rt.runtime.blocks import BlockSpec, block_specs, dense_specs
from infoprune_rt.runtime.costs import BlockCost, tower_costs
from infoprune_rt.runtime.encoder import CompactEncoder
from infoprune_rt.towers.base import TowerShape


@dataclass(frozen=True)
class Variant:
    """One way to compress the tower, carried out."""

    name: str
    label: str
    applied: Applied
    tower: CompactEncoder


class Workbench:
    """A loaded model with its calibration pictures; compresses its tower in any way and puts results in place."""

    def __init__(self, vlm: LoadedVLM, calibration: list[Path], batch_size: int = 32) -> None:
        self.vlm, self.adapter = vlm, vlm.adapter
        self.dense: nn.Module = vlm.adapter.tower_of(vlm.model)
        self.vision_config = vlm.adapter.vision_config(vlm.model.config)
        self.shape: TowerShape = vlm.adapter.shape(self.vision_config)
        self.batches: TowerBatches = tower_batches(calibration, vlm.processor.image_processor, vlm.adapter, batch_size)

    def plan(
        self, masks: Tensor | None = None, ffn: FFNPlan | None = None, *, refit: bool = True, sequential: bool = True
    ) -> Plan:
        """A plan for this model's tower; see ``make_plan``."""
        return make_plan(
            self.adapter.architecture, self.shape, masks=masks, ffn=ffn, refit=refit, sequential=sequential
        )

    def variant(self, name: str, label: str, plan: Plan) -> Variant:
        """Carry a plan out on the dense tower."""
        applied = apply_plan(self.dense, self.adapter, plan, lambda: self.batches)
        return Variant(name, label, applied, build_compact(self.adapter, self.vision_config, applied))

    @contextmanager
    def in_place(self, tower: nn.Module) -> Iterator[None]:
        """The model with ``tower`` for its tower."""
        self.adapter.replace_tower(self.vlm.model, tower)
        try:
            yield
        finally:
            self.adapter.replace_tower(self.vlm.model, self.dense)

    def specs(self, tower: nn.Module) -> list[BlockSpec]:
        """The block sizes of a dense or compact tower."""
        if isinstance(tower, CompactEncoder):
            return block_specs(tower.config.blocks, self.shape)
        return dense_specs(self.shape)

    def sizes(self, tower: nn.Module, patches: int) -> dict[str, Any]:
        """Parameters, FLOPs on one picture, and what every block keeps."""
        specs = self.specs(tower)
        cost = sum(tower_costs(specs, self.shape, [patches]), BlockCost())
        width = {"dense": self.shape.ffn_width, "merged": self.shape.width}
        return {
            "parameters": cost.parameters,
            "flops": cost.flops,
            "heads_per_block": [spec.num_heads for spec in specs],
            "ffn_per_block": [{"kind": spec.ffn, "size": spec.size or width[spec.ffn]} for spec in specs],
        }

    def masked_error(self, masks: Tensor) -> float:
        """Largest difference between masking heads and slicing them away, on the tower's merged output.

        Relative to the output's largest value; no refit and no FFN change, so only rounding is left: float32's,
        whatever the model computes in.
        """
        dense = copy.deepcopy(self.dense).float()
        plan = self.plan(masks, refit=False)
        sliced = build_compact(self.adapter, self.vision_config, apply_plan(dense, self.adapter, plan, lambda: []))
        sliced.backend = "plain"  # the same operators on both sides
        inputs = next(iter(self.batches))
        with torch.inference_mode():
            with mask_heads(self.adapter.blocks(dense), masks, self.shape.head_dim):
                masked = dense(**inputs).pooler_output
            error = (masked - sliced(**inputs).pooler_output).abs().max() / masked.abs().max()
        return float(error)
