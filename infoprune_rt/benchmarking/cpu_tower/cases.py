"""What the tower benchmark runs on: inputs, thread counts, and the towers at the 7B's sizes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import AutoModel, PretrainedConfig
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig

from infoprune_rt.demo.fullsize import dense_tower
from infoprune_rt.runtime.blocks import BlockSpec
from infoprune_rt.runtime.costs import BlockCost, tower_costs
from infoprune_rt.runtime.encoder import CompactEncoder
from infoprune_rt.towers import adapter_by_name

HEADS, HEAD_DIM, RANK = 8, 80, 128
FULL_DEPTH = 32
PIXELS = 1176  # numbers in one patch
MIXED = ((16, 16), (24, 32), (10, 14), (32, 20)) * 4  # patch rows and columns of sixteen images
DTYPE = torch.bfloat16


@dataclass(frozen=True)
class Case:
    """One input: its grids (patch rows and columns of every image), the blocks it goes through, and the threads."""

    grids: tuple[tuple[int, int], ...]
    threads: int
    blocks: int = 4

    @property
    def lengths(self) -> list[int]:
        """Patches of every image."""
        return [height * width for height, width in self.grids]

    @property
    def patches(self) -> int:
        """Rows of the pack."""
        return sum(self.lengths)

    def inputs(self) -> tuple[Tensor, Tensor]:
        """Random pixels of all patches (T x 1176, float32) from a fixed seed, and grid_thw."""
        torch.manual_seed(1)
        return torch.randn(self.patches, PIXELS), torch.tensor([(1, height, width) for height, width in self.grids])


class Subject:
    """A case's input and float32 towers, made when they are first asked for. folder: for exported models."""

    def __init__(self, case: Case, folder: Path) -> None:
        self.case, self.folder = case, folder
        self.pixels, self.grid = case.inputs()

    @cached_property
    def compact(self) -> CompactEncoder:
        """Half the heads and FFNs of rank 128, on PyTorch's operators."""
        return compact_tower(self.case.blocks)

    @cached_property
    def dense(self) -> nn.Module:
        """transformers' own tower."""
        return dense_tower(torch.float32, self.case.blocks)


def compact_tower(blocks: int) -> CompactEncoder:
    """Half the heads, FFNs of rank 128, random float32 weights from a fixed seed, on PyTorch's operators."""
    torch.manual_seed(0)
    spec = BlockSpec(HEADS, "lowrank", RANK).to_dict()
    config = adapter_by_name("qwen2_vl").compact_config(Qwen2VLVisionConfig(depth=blocks), [spec] * blocks)
    tower: CompactEncoder = AutoModel.from_config(config).eval()
    tower.backend = "plain"
    return tower


def tower_flops(specs: Sequence[BlockSpec], config: PretrainedConfig, lengths: Sequence[int]) -> int:
    """FLOPs of one pass of a Qwen2-VL tower: patch embedding, blocks, and the merger, which works on groups of patches.

    lengths: patches of every image.
    """
    shape = adapter_by_name("qwen2_vl").shape(config)
    blocks = sum(tower_costs(specs, shape, lengths), BlockCost()).flops
    pixels: int = config.in_channels * config.temporal_patch_size * config.patch_size**2
    group: int = config.spatial_merge_size**2
    joined = shape.width * group
    ends: int = pixels * shape.width + joined * (joined + config.hidden_size) // group
    return blocks + 2 * sum(lengths) * ends


def cases(quick: bool, threads: int) -> list[Case]:
    """Single images of 256, 1024 and 4096 patches and a mixed pack, 4 blocks; in full also 1 thread and 32 blocks."""
    grids = [((side, side),) for side in (16, 32, 64)]
    chosen = [*(Case(grid, threads) for grid in grids), Case(MIXED, threads)]
    if quick:
        return chosen
    alone = [Case(grid, 1) for grid in grids] if threads > 1 else []
    return [*chosen, *alone, Case(((32, 32),), threads, FULL_DEPTH)]
