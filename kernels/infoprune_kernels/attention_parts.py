"""What the attention kernels share: how a head is cut, the softmax, the launch, and what is compiled ahead of time."""

from __future__ import annotations

import math
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from infoprune_kernels.configs import Tile
from infoprune_kernels.specimens import Specimen

HEAD_DIMS = (32, 64, 72, 80, 88, 96, 128)


@triton.jit
def soften(scores, largest, total, scale_log2):
    """Powers of two of a block's scores, less each row's largest so far; the factor that corrects what was summed."""
    new_largest = tl.maximum(largest, tl.max(scores, 1) * scale_log2)  # [BM]
    weights = tl.exp2(scores * scale_log2 - new_largest[:, None])  # [BM, BN]
    shrink = tl.exp2(largest - new_largest)  # [BM]
    return weights, shrink, new_largest, total * shrink + tl.sum(weights, 1)


@triton.jit
def store(out, rows, end, cols, values, ROW: tl.constexpr, D: tl.constexpr):
    """Rows of one head, [BM, MAIN or TAIL], without those from ``end`` on and without columns from D on."""
    inside = (rows[:, None] < end) & (cols[None, :] < D)
    tl.store(out + rows[:, None] * ROW + cols[None, :], values.to(out.dtype.element_ty), inside)


def split_head(head_dim: int) -> tuple[int, int]:
    """Powers of two whose sum is the least that holds a head and that tensor cores take (16 at least); tail may be 0.

    >>> [split_head(dim) for dim in (80, 72, 96, 64, 56)]
    [(64, 16), (64, 16), (64, 32), (64, 0), (64, 0)]
    """
    whole = max(16, triton.next_power_of_2(head_dim))
    if head_dim <= 16 or head_dim == whole:
        return whole, 0
    tail = max(16, triton.next_power_of_2(head_dim - whole // 2))
    return (whole, 0) if tail == whole // 2 else (whole // 2, tail)


def launch(kernel: Any, q: Tensor, k: Tensor, v: Tensor, out: Tensor, work: Tensor, scale: float, tile: Tile) -> None:
    """Run a kernel over work items and heads; nothing is launched where there is none."""
    _, heads, dim = q.shape
    if len(work) and heads:
        kernel[(len(work), heads)](
            q, k, v, out, work, scale * math.log2(math.e), heads, dim, *split_head(dim), tile.block_m, tile.block_n,
            num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip


def specimen(name: str, kernel: Any, tile: Tile, dim: int) -> Specimen:
    """One head size at an odd number of heads, in bfloat16."""
    main, tail = split_head(dim)
    pointers = dict.fromkeys(("q", "k", "v", "out"), "*bf16") | {"work": "*i32"}
    return Specimen(
        name,
        f"heads of {dim}, {tile}",
        kernel,
        pointers | {"scale_log2": "fp32"},
        {"HEADS": 7, "D": dim, "MAIN": main, "TAIL": tail, "BM": tile.block_m, "BN": tile.block_n},
        tuple(pointers),
        tile.num_warps,
        tile.num_stages,
    )
