"""A compact tower under torch.compile, in the place of a model's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPooling

from infoprune_rt.benchmarking.cpu_tower.export import plain_module
from infoprune_rt.runtime.encoder import CompactEncoder


class CompiledTower(nn.Module):
    """Compiled for each pack of grids that it meets, on the operators' plain definitions.

    The compiler cannot look into our operators; bounds and rotary tables are constants to it.
    """

    def __init__(self, tower: CompactEncoder) -> None:
        super().__init__()
        self.tower = tower
        self.dtype, self.config = tower.dtype, tower.config
        self.spatial_merge_size = tower.spatial_merge_size
        self._compiled: dict[str, Callable[[Tensor], Tensor]] = {}

    def forward(self, hidden_states: Tensor, grid_thw: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """As the compact tower's, without the hidden state before the merger."""
        pixels, key = hidden_states.to(self.dtype), str(grid_thw.tolist())
        if key not in self._compiled:
            module = plain_module(self.tower, pixels, grid_thw)
            self._compiled[key] = torch.compile(module, fullgraph=True, dynamic=False)
        return BaseModelOutputWithPooling(pooler_output=self._compiled[key](pixels))
