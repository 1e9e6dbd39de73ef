"""Attention over packed sequences: softmax(q kᵀ scale) v within each sequence, not causal, any number of heads.

One program computes a block of queries of one sequence and one head. Which blocks there are is a flat work list made
on the host, so that short sequences leave no empty programs behind. The head dimension is not padded to a power of
two but cut into a main part and a tail (80 = 64 + 16), each with a product and an accumulator of its own.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import triton
import triton.language as tl
from torch import Tensor

from infoprune_kernels.attention_hopper import launch_attention_hopper, serves
from infoprune_kernels.attention_parts import HEAD_DIMS, launch, soften, specimen, store
from infoprune_kernels.configs import ConfigTable, Tile, table_for
from infoprune_kernels.specimens import Specimen
from infoprune_kernels.work import work_on


@triton.jit
def _load(base, rows, end, cols, ROW: tl.constexpr, D: tl.constexpr, MASKED: tl.constexpr):  # [rows, cols]
    """Rows of one head; those from ``end`` on, and columns from D on, are zero."""
    pointers = base + rows[:, None] * ROW + cols[None, :]
    inside = cols[None, :] < D
    if MASKED:
        return tl.load(pointers, mask=(rows[:, None] < end) & inside, other=0.0)
    return tl.load(pointers, mask=inside, other=0.0)


@triton.jit
def _attend(
    acc, acc_tail, largest, total, q, q_tail, k, v, first, last, end, scale_log2,
    ROW: tl.constexpr, D: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
    BN: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Take in the keys from ``first`` to ``last``, BN at a time; MASKED where some of them lie at or beyond ``end``."""
    cols = tl.arange(0, MAIN)
    for start in tl.range(first, last, BN):
        keys = start + tl.arange(0, BN)  # [BN]
        k_main = _load(k, keys, end, cols, ROW, D, MASKED)  # [BN, MAIN]
        scores = tl.dot(q, k_main.T, input_precision="ieee")  # [BM, BN]
        if TAIL:
            cols_tail = MAIN + tl.arange(0, TAIL)
            k_tail = _load(k, keys, end, cols_tail, ROW, D, MASKED)  # [BN, TAIL]
            scores = tl.dot(q_tail, k_tail.T, scores, input_precision="ieee")
        if MASKED:
            scores = tl.where(keys[None, :] < end, scores, float("-inf"))
        weights, shrink, largest, total = soften(scores, largest, total, scale_log2)
        weights = weights.to(q.dtype)  # [BM, BN]
        # A row of the next sequence may hold infinities or NaN, which a weight of zero would not take away.
        v_main = _load(v, keys, end, cols, ROW, D, MASKED)  # [BN, MAIN]
        acc = tl.dot(weights, v_main, acc * shrink[:, None], input_precision="ieee")  # [BM, MAIN]
        if TAIL:
            v_tail = _load(v, keys, end, cols_tail, ROW, D, MASKED)  # [BN, TAIL]
            acc_tail = tl.dot(weights, v_tail, acc_tail * shrink[:, None], input_precision="ieee")  # [BM, TAIL]
    return acc, acc_tail, largest, total


@triton.jit
def _attention_kernel(
    q, k, v, out, work, scale_log2,
    HEADS: tl.constexpr, D: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    # Work items come first: programs that run at the same time read the keys of one head.
    item = work + tl.program_id(0) * 3
    first, begin, end = tl.load(item), tl.load(item + 1), tl.load(item + 2)
    ROW: tl.constexpr = HEADS * D
    # Within a sequence 32 bits address every number; where it begins needs 64.
    base = begin.to(tl.int64) * ROW + tl.program_id(1) * D
    rows = first - begin + tl.arange(0, BM)  # [BM]
    end -= begin
    cols = tl.arange(0, MAIN)
    q_main = _load(q + base, rows, end, cols, ROW, D, True)  # [BM, MAIN]
    acc = tl.zeros([BM, MAIN], tl.float32)
    # Without a tail these two stand for nothing, and the compiler drops them.
    q_tail, acc_tail = q_main, acc
    if TAIL:
        cols_tail = MAIN + tl.arange(0, TAIL)
        q_tail = _load(q + base, rows, end, cols_tail, ROW, D, True)  # [BM, TAIL]
        acc_tail = tl.zeros([BM, TAIL], tl.float32)
    largest = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    whole = end // BN * BN
    acc, acc_tail, largest, total = _attend(
        acc, acc_tail, largest, total, q_main, q_tail, k + base, v + base, 0, whole, end, scale_log2,
        ROW, D, MAIN, TAIL, BN, False,
    )  # fmt: skip
    acc, acc_tail, largest, total = _attend(
        acc, acc_tail, largest, total, q_main, q_tail, k + base, v + base, whole, end, end, scale_log2,
        ROW, D, MAIN, TAIL, BN, True,
    )  # fmt: skip
    store(out + base, rows, end, cols, acc / total[:, None], ROW, D)
    if TAIL:
        store(out + base, rows, end, cols_tail, acc_tail / total[:, None], ROW, D)


def launch_attention(q: Tensor, k: Tensor, v: Tensor, out: Tensor, work: Tensor, scale: float, tile: Tile) -> None:
    """Fill ``out`` (T x h * D) from contiguous q, k, v (T x h x D) by a work list on their device."""
    launch(_attention_kernel, q, k, v, out, work, scale, tile)


def attention_tile(
    device: torch.device, dtype: torch.dtype, tokens: int, heads: int, head_dim: int
) -> tuple[Tile, bool]:
    """What attention is cut into on a device, and whether the kernel for Hopper is the one that serves."""
    table = table_for(device)
    sizes = {"head_dim": head_dim, "heads": heads, "tokens": tokens}
    hopper = table.find("attention_hopper", **sizes) if serves(head_dim, dtype) else None
    return hopper or table.choose("attention", **sizes), hopper is not None


def attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float) -> Tensor:
    """Each token attends to all tokens of its own sequence.

    Args:
        q, k, v: T x h x D, float32, float16 or bfloat16, on one device.
        cu_seqlens: S + 1 bounds from 0 to T, int64, on the CPU.
        scale: positive; what the scores are multiplied by.

    Returns:
        T x (h * D), q's dtype.

    Raises:
        ValueError: a scale that is not positive, a head or a sequence that is too long.
    """
    tokens, heads, dim = q.shape
    if not scale > 0:
        raise ValueError(f"attention: the scale must be positive, not {scale}")
    bounds = tuple(cu_seqlens.tolist())
    longest = max((stop - start for start, stop in pairwise(bounds)), default=0)
    if longest * heads * dim >= 2**31:
        raise ValueError(
            f"attention: a sequence of {longest} tokens with {heads} heads of {dim} holds 2^31 numbers or more; "
            "split it"
        )
    tile, hopper = attention_tile(q.device, q.dtype, tokens, heads, dim)
    fill = launch_attention_hopper if hopper else launch_attention
    out = q.new_empty(tokens, heads * dim)
    work = work_on(q.device, bounds, tile.block_m)
    fill(q.contiguous(), k.contiguous(), v.contiguous(), out, work, scale, tile)
    return out


def specimens(table: ConfigTable) -> list[Specimen]:
    """Every head size with all its tiles."""
    return [
        specimen("attention", _attention_kernel, tile, dim)
        for dim in HEAD_DIMS
        for tile in table.tiles("attention", head_dim=dim)
    ]
