"""Parameters and FLOPs of Table 1's rows, in both countings (method.md sections 4 and 5)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from infoprune_rt.baselines.yopo import (
    DecoderShape,
    VisualLayout,
    compact_flops,
    dense_flops,
    formula_flops,
    head_flops,
)
from infoprune_rt.benchmarking.cpu_tower.cases import tower_flops
from infoprune_rt.benchmarking.table1.methods import Method
from infoprune_rt.benchmarking.table1.subject import Subject


@dataclass(frozen=True)
class Costs:
    """What a row has and computes.

    parameters: of tower and language model. flops: all products of the pass to the first token, 2 x MAC, the tower's
    among them. flops_yopo: what YOPO counts, visual tokens in the language model alone.
    """

    parameters: int
    flops: int
    flops_yopo: float


def costs(subject: Subject, method: Method, inputs: Mapping[str, Tensor]) -> Costs:
    """By formulas, of one prompt. inputs: the model's."""
    config, decoder = subject.model.config, DecoderShape.of(subject.model.config)
    visual = inputs["input_ids"][0] == config.image_token_id
    lengths = [int(h * w) for t, h, w in inputs["image_grid_thw"].tolist() for _ in range(t)]
    small = tower_flops(subject.specs(method), config.vision_config, lengths)
    if method.yopo == "compact":
        layout = VisualLayout.of(visual.cpu(), _frames(subject, inputs))
        language = compact_flops(decoder, subject.yopo, layout)
    else:
        language = dense_flops(decoder, len(visual))  # masks skip no product
    pruned = None if method.yopo is None else subject.yopo
    return Costs(
        parameters=_parameters(subject, method),
        flops=small + language + head_flops(config),
        flops_yopo=formula_flops(decoder, int(visual.sum()), pruned),
    )


def _frames(subject: Subject, inputs: Mapping[str, Tensor]) -> tuple[tuple[int, int], ...]:
    merge = subject.model.config.vision_config.spatial_merge_size
    return tuple((h // merge, w // merge) for t, h, w in inputs["image_grid_thw"].tolist() for _ in range(t))


def _parameters(subject: Subject, method: Method) -> int:
    """Masked rows keep all of them."""
    tower: torch.nn.Module = subject.compact if method.structure[0] == "compact" else subject.dense
    return _count(subject.model) - _count(subject.dense) + _count(tower)


def _count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
