"""The whole 7B tower on a GPU, in DTYPE: the ways to run it that are compared, by name, on one set of weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infoprune_rt.benchmarking.cpu_tower.cases import FULL_DEPTH, HEAD_DIM, HEADS, MIXED, RANK, Case, compact_tower
from infoprune_rt.benchmarking.cpu_tower.export import fixed_attention
from infoprune_rt.benchmarking.gpu.measuring import DTYPE
from infoprune_rt.demo.fullsize import dense_tower
from infoprune_rt.ops import plain
from infoprune_rt.runtime.encoder import CompactEncoder
from infoprune_rt.towers.qwen2_vl import embed_patches, pack

if TYPE_CHECKING:
    from infoprune_kernels.roofline import Chip, Work

    from infoprune_rt.benchmarking.gpu.timing import Run

GRAPHS, EAGER = "compact, ours, graphs", "compact, ours, eager"
COMPILED, DENSE = "compact, torch.compile(max-autotune)", "transformers, dense"
OURS = (GRAPHS, EAGER)
INPUTS = 2  # packs of the same sizes that take turns
GRIDS = (((34, 46),), ((64, 64),), MIXED)  # 640 x 480 pixels; 896 x 896; sixteen images


def cases() -> list[Case]:
    """The packs, all through 32 blocks."""
    return [Case(grids, torch.get_num_threads(), FULL_DEPTH) for grids in GRIDS]


@dataclass(frozen=True)
class Pack:
    """A case's input on a device: pixels, several times freshly random, and the grids, which stay on the host."""

    case: Case
    pixels: tuple[Tensor, ...]
    grid: Tensor

    @classmethod
    def on(cls, device: torch.device, case: Case) -> Pack:
        """INPUTS packs."""
        pixels, grid = case.inputs()
        return cls(case, tuple(torch.randn_like(pixels).to(device) for _ in range(INPUTS)), grid)

    def runs(self, call: Callable[[Tensor], Tensor]) -> list[Run]:
        """The same call on every input."""
        return [partial(call, pixels) for pixels in self.pixels]


class Towers:
    """The towers of a depth, each made when it is first asked for and then kept."""

    def __init__(self, device: torch.device, blocks: int) -> None:
        self.device, self.blocks = device, blocks

    @cached_property
    def exact(self) -> CompactEncoder:
        """Half the heads and FFNs of rank 128, float32, on PyTorch's operators."""
        with self.device:
            return compact_tower(self.blocks)

    @cached_property
    def eager(self) -> CompactEncoder:
        """The same in DTYPE, on our kernels where it is on a GPU."""
        tower: CompactEncoder = copy.deepcopy(self.exact).to(DTYPE)
        tower.backend = "triton" if self.device.type == "cuda" else "plain"
        return tower

    @cached_property
    def captured(self) -> CompactEncoder:
        """The same with graphs captured, of the sizes that the runtime chooses."""
        tower: CompactEncoder = copy.deepcopy(self.eager)
        tower.capture_graphs()
        return tower

    @cached_property
    def exact_dense(self) -> nn.Module:
        """transformers' tower, float32."""
        with self.device:
            return dense_tower(torch.float32, self.blocks)

    @cached_property
    def dense(self) -> nn.Module:
        """transformers' tower in DTYPE with the best attention that it has here."""
        tower: Any = copy.deepcopy(self.exact_dense).to(DTYPE)
        if self.device.type == "cuda" and find_spec("flash_attn") is not None:
            with suppress(ImportError, ValueError):  # it is installed, but cannot be used
                tower.set_attn_implementation("flash_attention_2")
        made: nn.Module = tower
        return made

    def exact_answers(self, of_dense: bool, packed: Pack) -> dict[int, Tensor]:
        """In float32, to every input."""
        call = _call(self.exact_dense if of_dense else self.exact, packed)
        return {i: call(pixels) for i, pixels in enumerate(packed.pixels)}

    def runs(self, name: str, packed: Pack) -> list[Run]:
        """A contender, ready to run on a pack."""
        if name == COMPILED:
            plain_tower = PlainTower(self.eager, packed).eval()
            return packed.runs(torch.compile(plain_tower, mode="max-autotune", fullgraph=True, dynamic=False))
        tower = {GRAPHS: "captured", EAGER: "eager", DENSE: "dense"}[name]
        return packed.runs(_call(getattr(self, tower), packed))


def _call(tower: nn.Module, packed: Pack) -> Callable[[Tensor], Tensor]:
    """A pass as a user makes it: grids are on the host for ours, where transformers' models have them for theirs."""
    grid = packed.grid if isinstance(tower, CompactEncoder) else packed.grid.to(packed.pixels[0].device)
    return lambda pixels: tower(pixels, grid).pooler_output


class PlainTower(nn.Module):
    """A compact tower on PyTorch's own operators alone, for packs of one shape: what a compiler can see through.

    Bounds and rotary tables are constants, which spares it what ours computes or looks up in every pass.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, tower: CompactEncoder, packed: Pack) -> None:
        super().__init__()
        self.tower = tower
        self.attention = fixed_attention(packed.case.lengths)
        stream = pack(tower.config, packed.grid, packed.pixels[0])
        self.register_buffer("cos", stream.cos, persistent=False)
        self.register_buffer("sin", stream.sin, persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """T x (C * frames * patch^2) -> T / merge^2 x the language model's width."""
        x = embed_patches(pixels, self.tower.patch_embed.weight)
        for block in self.tower.blocks:
            x = self._block(block, x)
        merged: Tensor = self.tower.merger(x, linear=_linear)
        return merged

    def _block(self, block: Any, x: Tensor) -> Tensor:
        norm, qkv, out, ffn = block.norm1, block.qkv, block.out, block.ffn
        sizes = block.spec.num_heads, block.head_dim
        q, k, v = plain.norm_qkv_rope(
            x, norm.weight, norm.bias, norm.eps, qkv.weight, qkv.bias, self.cos, self.sin, *sizes
        )
        attended = self.attention(q, k, v, None, block.head_dim**-0.5)
        x = plain.linear_residual(attended, out.weight, out.bias, x)
        norm = block.norm2
        return plain.ffn_lowrank(x, norm.weight, norm.bias, norm.eps, ffn.down, ffn.up, ffn.bias)


def _linear(layer: nn.Linear, x: Tensor, activation: str = "none") -> Tensor:
    out = F.linear(x, layer.weight, layer.bias)
    return out if activation == "none" else F.gelu(out)


def tower_work(case: Case) -> list[Work]:
    """The compact tower's operators one after the other: patch embedding, blocks, merger."""
    from infoprune_kernels import roofline

    config: Any = _config()
    width, group = config.embed_dim, config.spatial_merge_size**2
    patches, joined = case.patches, width * group
    pixels = config.in_channels * config.temporal_patch_size * config.patch_size**2
    block = [
        roofline.norm_qkv_rope(patches, width, HEADS, HEAD_DIM),
        roofline.attention(case.lengths, HEADS, HEAD_DIM),
        roofline.linear_residual(patches, HEADS * HEAD_DIM, width),
        roofline.ffn_lowrank(patches, width, RANK),
    ]
    ends = [
        (patches, pixels, width),
        (patches // group, joined, joined),
        (patches // group, joined, config.hidden_size),
    ]
    return [*block * case.blocks, *(roofline.linear_residual(*sizes) for sizes in ends)]


def floor_us(case: Case, chip: Chip) -> float:
    """The sum of all operators' floors on a chip."""
    return 1e6 * sum(work.floor(chip) for work in tower_work(case))


def _config() -> Any:
    from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig

    return Qwen2VLVisionConfig()
