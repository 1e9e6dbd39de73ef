"""A compact tower on the CPU kernels: weights packed once, activations in one workspace.

A block works in place on the residual stream; attention leaves its result where its queries were. Beyond the stream
itself a pass holds q, k and v of the widest block, and the packed keys and values of one block. Both are kept for the
next pass, as large as the largest one needed them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infoprune_rt.ops.cpu_library import isa, load_library
from infoprune_rt.ops.plain import GATED
from infoprune_rt.runtime.blocks import BlockStack, CompactBlock
from infoprune_rt.runtime.seen_weights import SeenWeights

DTYPES = (torch.float32, torch.bfloat16)
PANEL = 16  # columns of a packed matrix that lie together (csrc/kernels.h)


class CpuEngine:
    """Packed copies of a stack's weights.

    They cost as much memory again as the blocks' weights (twice that for bfloat16 on a CPU without bfloat16
    arithmetic, four times for int8 on one without a dot product of bytes: there they are kept as float32).
    """

    def __init__(self, blocks: BlockStack) -> None:
        load_library()
        self.isa = isa()
        self.dtype = dtype_of(blocks)
        self._made_from = SeenWeights(blocks)
        with torch.no_grad():
            self._blocks = [_PackedBlock(cast(CompactBlock, block), self.isa) for block in blocks]
        self._spare: list[Tensor] = []  # for q, k and v; as many as passes ever ran at once

    def is_current(self, blocks: BlockStack) -> bool:
        """Whether the stack still holds the weights that were packed."""
        return self._made_from.are_those_of(blocks)

    def run(self, x: Tensor, cu_seqlens: Tensor, cos: Tensor | None, sin: Tensor | None) -> Tensor:
        """x (T x d) through all blocks; arguments as ``BlockStack.forward``'s. x itself is left as it was."""
        return self._run(self._blocks, x, cu_seqlens, cos, sin)

    def run_block(self, index: int, x: Tensor, cu_seqlens: Tensor, cos: Tensor | None, sin: Tensor | None) -> Tensor:
        """One block alone, for callers who want every hidden state."""
        return self._run(self._blocks[index : index + 1], x, cu_seqlens, cos, sin)

    def release_workspace(self) -> None:
        """Free what is kept between passes; the next one takes it anew."""
        self._spare.clear()

    def _run(
        self, blocks: list[_PackedBlock], x: Tensor, cu_seqlens: Tensor, cos: Tensor | None, sin: Tensor | None
    ) -> Tensor:
        stream = x.clone(memory_format=torch.contiguous_format)
        size = 3 * len(stream) * max((block.inner for block in blocks), default=0)
        try:
            workspace = self._spare.pop()  # a pass in another thread takes another one
        except IndexError:
            workspace = torch.empty(0)
        if workspace.numel() < size:
            with torch.inference_mode(False):  # the next pass may be outside of it
                workspace = stream.new_empty(size)
        for block in blocks:
            block.run(stream, workspace, cu_seqlens, cos, sin)
        self._spare.append(workspace)
        return stream


class PackedLinear:
    """A layer before or after the blocks, with its packed weight: as much memory again as the weight."""

    def __init__(self, layer: nn.Linear) -> None:
        load_library()
        self.isa = isa()
        self._made_from = SeenWeights(layer)
        with torch.no_grad():
            self._weight = torch.ops.infoprune_cpu.pack(layer.weight.detach().contiguous(), 1, self.isa)
            self._bias = None if layer.bias is None else _row(layer.bias)

    def is_current(self, layer: nn.Linear) -> bool:
        """Whether the layer still holds the weights that were packed."""
        return self._made_from.are_those_of(layer)

    def run(self, layer: nn.Linear, x: Tensor, activation: str) -> Tensor:
        """activation(layer(x)), T x out; x: T x in."""
        out = x.new_empty(len(x), layer.out_features)
        ops = torch.ops.infoprune_cpu
        ops.linear_activation_(x.contiguous(), self._weight, self._bias, activation, out, self.isa)
        return out


def dtype_of(blocks: nn.Module) -> torch.dtype | None:
    """The one dtype of all that is not int8, on the CPU, that the kernels know; None where there is no such."""
    kinds = {(p.dtype, p.device.type) for p in blocks.parameters() if p.dtype != torch.int8}
    if len(kinds) != 1:
        return None
    dtype, device = kinds.pop()
    return dtype if device == "cpu" and dtype in DTYPES else None


def release_workspace() -> None:
    """Free the working memory that the kernels keep between calls of all towers."""
    if load_library.cache_info().currsize:
        torch.ops.infoprune_cpu.release_workspace()


def beside_each_other(both: Tensor) -> Tensor:
    """A gated FFN's first layer (2m x d, the gate's rows first) or its bias (2m), as the kernels take them.

    Panels of the gate and of what it multiplies, in turn and filled up with zeros: whoever computes some neighbouring
    panels has all that their hidden values need.
    """
    columns = both.shape[1:]
    halves = both.detach().view(2, len(both) // 2, *columns)
    filled = F.pad(halves, (0, 0) * len(columns) + (0, -halves.shape[1] % PANEL))
    return filled.view(2, -1, PANEL, *columns).transpose(0, 1).flatten(0, 2)


def _row(tensor: Tensor) -> Tensor:
    """As the kernels want it; the same memory wherever it lies so already."""
    return tensor.detach().contiguous()


def _norm(norm: nn.LayerNorm) -> tuple[Tensor, Tensor, float]:
    return _row(norm.weight), _row(norm.bias), norm.eps


class _PackedBlock:
    """One block's arguments to the kernels."""

    def __init__(self, block: CompactBlock, isa: str) -> None:
        self.isa = isa
        self.int8 = block.spec.quantize is not None
        self.heads, self.head_dim = block.spec.num_heads, block.head_dim
        self.inner = self.heads * self.head_dim
        self._out_bias = _row(block.out.bias)
        if self.heads:
            packed = self._pack(block.qkv, "weight", 3 * self.heads)
            self._qkv = (*_norm(block.norm1), packed, _row(block.qkv.bias))
            self._out = self._pack(block.out, "weight")
        self._ffn = (*_norm(block.norm2), *self._ffn_arguments(block))

    def _pack(
        self, module: nn.Module, name: str, parts: int = 1, arrange: Callable[[Tensor], Tensor] = Tensor.detach
    ) -> Tensor:
        """A weight of the module (with its scales where it is quantised) as `parts` packed matrices.

        arrange: gives the rows, and their scales, in the order in which they are packed.
        """
        ops = torch.ops.infoprune_cpu
        weight = _row(arrange(getattr(module, name)))
        packed: Tensor
        if self.int8:
            scale = _row(arrange(getattr(module, f"{name}_scale"))).float()
            packed = ops.pack_int8(weight, scale, parts, self.isa)
        else:
            packed = ops.pack(weight, parts, self.isa)
        return packed

    def _ffn_arguments(self, block: CompactBlock) -> tuple[Any, ...]:
        ffn: Any = block.ffn
        if block.spec.ffn == "merged":
            return self._pack(ffn, "map"), _row(ffn.bias), len(ffn.map), None, None, "none", 0
        if block.spec.ffn == "lowrank":
            return self._pack(ffn, "down"), None, len(ffn.down), self._pack(ffn, "up"), _row(ffn.bias), "none", 0
        arrange = beside_each_other if ffn.activation in GATED else Tensor.detach
        first, second = self._pack(ffn, "fc1_weight", arrange=arrange), self._pack(ffn, "fc2_weight")
        after = ffn.fc2_weight.shape[1], second, _row(ffn.fc2_bias), ffn.activation, ffn.linear
        return first, _row(arrange(ffn.fc1_bias)), *after

    def run(self, x: Tensor, workspace: Tensor, cu_seqlens: Tensor, cos: Tensor | None, sin: Tensor | None) -> None:
        """x (T x d) in place; workspace: at least 3 * T * heads * head_dim values."""
        ops = torch.ops.infoprune_cpu
        if self.heads:
            size = len(x) * self.inner
            q, k, v = (
                workspace[part * size : (part + 1) * size].view(len(x), self.heads, self.head_dim) for part in range(3)
            )
            ops.norm_qkv_rope_(x, *self._qkv, cos, sin, q, k, v, self.int8, self.isa)
            ops.attention_(q, k, v, cu_seqlens, self.head_dim**-0.5, self.isa)
            ops.linear_residual_(q.view(len(x), self.inner), self._out, self._out_bias, x, self.int8, self.isa)
        else:
            x += self._out_bias
        ops.ffn_(x, *self._ffn, self.int8, self.isa)
