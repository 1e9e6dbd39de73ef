"""Attention for Hopper: tiles come by TMA, in warps of their own, while other warps multiply.

The same work list and the same arithmetic as ``attention``, whose kernel it replaces where a table has a tile for it.
No table has one until it was measured. The descriptors are made on the device, as each program's sequence has bounds
of its own: rows behind the end arrive as zeros, and so does what a tail has behind its head's last column.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from functools import partial

import torch
import triton
import triton.language as tl
from torch import Tensor

from infoprune_kernels.attention_parts import HEAD_DIMS, launch, soften, specimen, store
from infoprune_kernels.configs import ConfigTable, Tile
from infoprune_kernels.specimens import Specimen

# What is worth measuring: four warps become twelve by specialisation; eight would silently stay eight.
CANDIDATES = (Tile(128, 64, 4, 2), Tile(128, 128, 4, 2))


@triton.jit
def _attention_hopper_kernel(
    q, k, v, out, work, scale_log2,
    HEADS: tl.constexpr, D: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    item = work + tl.program_id(0) * 3
    first, begin, end = tl.load(item), tl.load(item + 1), tl.load(item + 2)
    ROW: tl.constexpr = HEADS * D
    base = begin.to(tl.int64) * ROW + tl.program_id(1) * D
    first -= begin
    end -= begin
    rows = first + tl.arange(0, BM)  # [BM]
    acc = tl.zeros([BM, MAIN], tl.float32)
    length = tl.maximum(end, 1)  # a padded list's items have no tokens, and a descriptor cannot say so
    q_main = tl.make_tensor_descriptor(q + base, [length, D], [ROW, 1], [BM, MAIN]).load([first, 0])
    k_main = tl.make_tensor_descriptor(k + base, [length, D], [ROW, 1], [BN, MAIN])
    v_main = tl.make_tensor_descriptor(v + base, [length, D], [ROW, 1], [BN, MAIN])
    # Without a tail these stand for nothing, and the compiler drops them.
    q_tail, k_tail, v_tail, acc_tail = q_main, k_main, v_main, acc
    if TAIL:
        behind = base + MAIN
        q_tail = tl.make_tensor_descriptor(q + behind, [length, D - MAIN], [ROW, 1], [BM, TAIL]).load([first, 0])
        k_tail = tl.make_tensor_descriptor(k + behind, [length, D - MAIN], [ROW, 1], [BN, TAIL])
        v_tail = tl.make_tensor_descriptor(v + behind, [length, D - MAIN], [ROW, 1], [BN, TAIL])
        acc_tail = tl.zeros([BM, TAIL], tl.float32)
    largest = tl.full([BM], float("-inf"), tl.float32)
    total = tl.zeros([BM], tl.float32)
    # One loop, masked throughout: the compiler refuses to specialise this one beside a second one.
    for start in tl.range(0, end, BN, warp_specialize=True):
        scores = tl.dot(q_main, k_main.load([start, 0]).T, input_precision="ieee")  # [BM, BN]
        if TAIL:
            scores = tl.dot(q_tail, k_tail.load([start, 0]).T, scores, input_precision="ieee")
        scores = tl.where((start + tl.arange(0, BN))[None, :] < end, scores, float("-inf"))
        weights, shrink, largest, total = soften(scores, largest, total, scale_log2)
        weights = weights.to(q_main.dtype)  # [BM, BN]
        acc = tl.dot(weights, v_main.load([start, 0]), acc * shrink[:, None], input_precision="ieee")  # [BM, MAIN]
        if TAIL:
            acc_tail = tl.dot(weights, v_tail.load([start, 0]), acc_tail * shrink[:, None], input_precision="ieee")
    store(out + base, rows, end, tl.arange(0, MAIN), acc / total[:, None], ROW, D)
    if TAIL:
        store(out + base, rows, end, MAIN + tl.arange(0, TAIL), acc_tail / total[:, None], ROW, D)


def serves(head_dim: int, dtype: torch.dtype) -> bool:
    """Whether rows of a head begin where TMA can read: at multiples of 16 bytes."""
    return head_dim * dtype.itemsize % 16 == 0


def launch_attention_hopper(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, work: Tensor, scale: float, tile: Tile
) -> None:
    """Fill ``out`` (T x h * D) from contiguous q, k, v (T x h x D) by a work list on their device."""
    run = partial(launch, _attention_hopper_kernel, q, k, v, out, work, scale, tile)
    contextvars.copy_context().run(_with_room_for_descriptors, run, q.device)


def _with_room_for_descriptors(run: Callable[[], None], device: torch.device) -> None:
    """Descriptors lie in memory that Triton asks its caller for; who else has set an allocator keeps it."""
    triton.set_allocator(lambda size, alignment, stream: torch.empty(size, dtype=torch.int8, device=device))
    run()


def specimens(table: ConfigTable) -> list[Specimen]:
    """Every head size with all its tiles, or with those worth measuring; none where there is no TMA."""
    if table.arch < 90:
        return []
    return [
        specimen("attention_hopper", _attention_hopper_kernel, tile, dim)
        for dim in HEAD_DIMS
        for tile in table.tiles("attention_hopper", head_dim=dim) or CANDIDATES
    ]
