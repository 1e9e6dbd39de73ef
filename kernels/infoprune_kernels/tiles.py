"""What the kernels of linear maps share: the order of output tiles, and the product of rows with a weight's rows."""

from __future__ import annotations

import triton
import triton.language as tl

BAND = tl.constexpr(8)  # row blocks that run beside each other, so that their columns' weights stay in the L2 cache


@triton.jit
def place_of(program, row_blocks, column_blocks):
    """The output tile of a program: columns within a band of row blocks, then the next band."""
    width = BAND * column_blocks
    first = program // width * BAND
    height = min(row_blocks - first, BAND)
    return first + program % width % height, program % width // height


@triton.jit
def multiply(acc, x, weight, K: tl.constexpr, BK: tl.constexpr):
    """acc (BM x BN) + rows of x times rows of a weight, K numbers each.

    x points to the rows' beginnings (BM x 1), weight to its rows' (1 x BN); all of them must exist. Who computes more
    rows than there are lets the last one stand in for those beyond: whole rows need no masks.
    """
    for start in tl.range(0, K, BK):
        k = start + tl.arange(0, BK)
        if K % BK == 0:
            a = tl.load(x + k[None, :])  # [BM, BK]
            b = tl.load(weight + k[:, None])  # [BK, BN]
        else:
            a = tl.load(x + k[None, :], mask=k[None, :] < K, other=0.0)
            b = tl.load(weight + k[:, None], mask=k[:, None] < K, other=0.0)
        acc = tl.dot(a, b, acc, input_precision="ieee")
    return acc
