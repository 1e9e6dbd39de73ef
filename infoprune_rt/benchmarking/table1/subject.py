"""One model in all the forms that Table 1 compares: its towers, and how the language model is run."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from infoprune_rt.baselines.yopo import DecoderShape, YopoSettings, install
from infoprune_rt.benchmarking.table1.compiled import CompiledTower
from infoprune_rt.benchmarking.table1.masked import masked_spec, masked_tower
from infoprune_rt.benchmarking.table1.methods import Method
from infoprune_rt.runtime.blocks import BlockSpec, block_specs, dense_specs
from infoprune_rt.runtime.encoder import CompactEncoder
from infoprune_rt.towers.acceleration import accelerate, restore
from infoprune_rt.towers.base import TowerAdapter, TowerShape


@dataclass
class Subject:
    """A dense model with its compact tower and its YOPO settings.

    weights: "random" or where they come from. kernels: our backend on its device. Towers are made when they are first
    asked for, and kept.
    """

    model: Any
    adapter: TowerAdapter
    image_processor: Any
    compact: CompactEncoder
    yopo: YopoSettings
    weights: str
    kernels: str
    processor: Any = None  # of real weights, which can be asked questions
    _towers: dict[str, nn.Module] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        self.dense: nn.Module = self.adapter.tower_of(self.model)
        self._accelerated: Any = None

    @property
    def shape(self) -> TowerShape:
        """The dense tower's."""
        return self.adapter.shape(self.dense.config)

    @property
    def decoder(self) -> DecoderShape:
        """The language decoder's sizes."""
        return DecoderShape.of(self.model.config)

    def specs(self, method: Method) -> list[BlockSpec]:
        """The sizes of the blocks that a row computes."""
        if method.structure[0] == "dense":
            return dense_specs(self.shape)
        kept = block_specs(self.compact.config.blocks, self.shape)
        return [masked_spec(spec, self.shape) for spec in kept] if method.tower == "masked" else kept

    def tower(self, method: Method) -> nn.Module:
        """The tower of a row."""
        if method.tower in ("dense", "accelerated"):
            return self.dense
        if method.tower not in self._towers:
            self._towers[method.tower] = self._make(method.tower)
        return self._towers[method.tower]

    @contextmanager
    def standing(self, method: Method) -> Iterator[nn.Module]:
        """The model as the row wants it, until the context ends; gives the tower that stands in it."""
        tower = self.tower(method)
        with ExitStack() as undo:
            self.model.set_attn_implementation(method.attention)
            undo.callback(self.model.set_attn_implementation, "sdpa")
            if tower is not self.dense:
                self.adapter.replace_tower(self.model, tower)
                undo.callback(self.adapter.replace_tower, self.model, self.dense)
            if method.tower == "accelerated":
                self._accelerate()
                undo.callback(restore, self.model)
            if method.yopo is not None:
                undo.enter_context(install(self.model, self.yopo, method.yopo))
            yield tower

    def _accelerate(self) -> None:
        """Once; from then on with the weights that were packed then."""
        if self._accelerated is None:
            accelerate(self.model)
            self._accelerated = vars(self.dense)["forward"]
            self._accelerated.compact.backend = self.kernels
        vars(self.dense)["forward"] = self._accelerated

    def _make(self, kind: str) -> nn.Module:
        if kind == "masked":
            return masked_tower(self.dense, self.compact, self.adapter)
        tower = copy.deepcopy(self.compact)
        tower.backend = self.kernels if kind == "kernels" else "plain"
        if kind == "compiled":
            return CompiledTower(tower)
        if kind == "kernels" and self.kernels == "triton":
            tower.capture_graphs()
        return tower
