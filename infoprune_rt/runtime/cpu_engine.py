"""The blocks of a compact tower on the CPU kernels: weights packed once, activations in one workspace.

A block works in place on the residual stream; attention leaves its result where its queries were. Beyond the stream
itself a pass holds q, k and v of the widest block, and the packed keys and values of one block.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from infoprune_rt.ops.cpu_library import isa, load_library
from infoprune_rt.runtime.blocks import BlockStack, CompactBlock

DTYPES = (torch.float32, torch.bfloat16)


class CpuEngine:
    """Packed copies of a stack's weights.

    They cost as much memory again as the blocks' weights (twice that for bfloat16 on a CPU without bfloat16
    arithmetic, where they are kept as float32).
    """

    def __init__(self, blocks: BlockStack) -> None:
        load_library()
        self.isa = isa()
        # Held, so that no other weights can come to lie where these were.
        self._made_from = [parameter.detach() for parameter in blocks.parameters()]
        self._state = weights_state(blocks)
        with torch.no_grad():
            self._blocks = [_PackedBlock(cast(CompactBlock, block), self.isa) for block in blocks]

    def is_current(self, blocks: BlockStack) -> bool:
        """Whether the stack still holds the weights that were packed.

        Not seen is what PyTorch itself does not count: writing through ``.data`` or NumPy, and writing to weights
        that were made in inference mode.
        """
        return self._state == weights_state(blocks)

    def run(self, x: Tensor, cu_seqlens: Tensor, cos: Tensor | None, sin: Tensor | None) -> Tensor:
        """x (T x d) through all blocks; arguments as ``BlockStack.forward``'s. x itself is left as it was."""
        stream = x.clone(memory_format=torch.contiguous_format)
        wide = max((block.inner for block in self._blocks), default=0)
        workspace = x.new_empty(3, len(x) * wide)
        for block in self._blocks:
            block.run(stream, workspace, cu_seqlens, cos, sin)
        return stream

    def run_block(self, index: int, x: Tensor, cu_seqlens: Tensor, cos: Tensor | None, sin: Tensor | None) -> Tensor:
        """One block alone, for callers who want every hidden state."""
        stream = x.clone(memory_format=torch.contiguous_format)
        block = self._blocks[index]
        block.run(stream, x.new_empty(3, len(x) * block.inner), cu_seqlens, cos, sin)
        return stream


def dtype_of(blocks: nn.Module) -> torch.dtype | None:
    """The one dtype of all the weights on the CPU that the kernels know; None where there is no such."""
    kinds = {(parameter.dtype, parameter.device.type) for parameter in blocks.parameters()}
    if len(kinds) != 1:
        return None
    dtype, device = kinds.pop()
    return dtype if device == "cpu" and dtype in DTYPES else None


def weights_state(module: nn.Module) -> list[tuple[object, ...]]:
    """Changes whenever a weight is replaced (while the earlier one is held) or written to."""
    return [(p.data_ptr(), p.stride(), 0 if p.is_inference() else p._version) for p in module.parameters()]


class _PackedBlock:
    """One block's arguments to the kernels."""

    def __init__(self, block: CompactBlock, isa: str) -> None:
        self.isa = isa
        self.heads, self.head_dim = block.spec.num_heads, block.head_dim
        self.inner = self.heads * self.head_dim
        self._out_bias = block.out.bias
        if self.heads:
            norm, qkv = block.norm1, block.qkv
            packed = self._pack(qkv.weight, 3 * self.heads)
            self._qkv = (norm.weight, norm.bias, norm.eps, packed, qkv.bias)
            self._out = self._pack(cast(Tensor, block.out.weight))
        self._ffn = (block.norm2.weight, block.norm2.bias, block.norm2.eps, *self._ffn_arguments(block))

    def _pack(self, weight: Tensor, parts: int = 1) -> Tensor:
        packed: Tensor = torch.ops.infoprune_cpu.pack(weight.detach().contiguous(), parts, self.isa)
        return packed

    def _ffn_arguments(self, block: CompactBlock) -> tuple[Any, ...]:
        ffn: Any = block.ffn
        if block.spec.ffn == "merged":
            return self._pack(ffn.map), ffn.bias, len(ffn.map), None, None, "none"
        if block.spec.ffn == "lowrank":
            return self._pack(ffn.down), None, len(ffn.down), self._pack(ffn.up), ffn.bias, "none"
        first, second = self._pack(ffn.fc1_weight), self._pack(ffn.fc2_weight)
        return first, ffn.fc1_bias, len(ffn.fc1_bias), second, ffn.fc2_bias, ffn.activation

    def run(self, x: Tensor, workspace: Tensor, cu_seqlens: Tensor, cos: Tensor | None, sin: Tensor | None) -> None:
        """x (T x d) in place; workspace: 3 x at least T * heads * head_dim."""
        ops = torch.ops.infoprune_cpu
        if self.heads:
            rows = len(x)
            q, k, v = (part[: rows * self.inner].view(rows, self.heads, self.head_dim) for part in workspace)
            ops.norm_qkv_rope_(x, *self._qkv, cos, sin, q, k, v, self.isa)
            ops.attention_(q, k, v, cu_seqlens, self.head_dim**-0.5, self.isa)
            ops.linear_residual_(q.view(rows, self.inner), self._out, self._out_bias, x, self.isa)
        else:
            x += self._out_bias
        ops.ffn_(x, *self._ffn, self.isa)
