"""LayerNorm, the product to queries, keys and values, bias and rotary embedding; any number of heads.

The rotation takes numbers i and i + D / 2 of a head together. So the columns of the product are taken in that order,
the two of a pair beside each other, by choosing which row of the weight stands at which column: rows are whole runs of
memory wherever they lie. A tile holds pairs only, of whichever heads and parts its columns fall into; heads are not
padded. In the accumulator both numbers of a pair are in one thread.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from infoprune_kernels.configs import ConfigTable, Tile, table_for
from infoprune_kernels.layer_norm import layer_norm
from infoprune_kernels.specimens import Specimen
from infoprune_kernels.tiles import multiply, place_of


@triton.jit(do_not_specialize=["tokens"])
def _qkv_rope_kernel(
    x, weight, bias, cos, sin, q, k, v, tokens,
    WIDTH: tl.constexpr, HEADS: tl.constexpr, D: tl.constexpr, ROPE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = D // 2
    PAIRS: tl.constexpr = 3 * HEADS * HALF  # of q, then of k, then of v
    block, column_block = place_of(tl.program_id(0), tl.cdiv(tokens, BM), tl.cdiv(2 * PAIRS, BN))
    row = block * BM + tl.arange(0, BM)
    x_rows = x + tl.minimum(row, tokens - 1).to(tl.int64)[:, None] * WIDTH

    col = tl.arange(0, BN)
    pair = tl.minimum(column_block * (BN // 2) + col // 2, PAIRS - 1)
    source = pair // HALF * D + col % 2 * HALF + pair % HALF  # [BN] rows of the weight
    acc = multiply(tl.zeros([BM, BN], tl.float32), x_rows, weight + source[None, :] * WIDTH, WIDTH, BK)
    acc += tl.load(bias + source).to(tl.float32)[None, :]
    first, second = acc.reshape(BM, BN // 2, 2).split()  # [BM, BN / 2] each

    pair = column_block * (BN // 2) + tl.arange(0, BN // 2)
    i, part = pair % HALF, pair // (HEADS * HALF)
    inside = (row[:, None] < tokens) & (pair[None, :] < PAIRS)
    if ROPE:
        turned = inside & (part[None, :] < 2)  # values stay as they are: cos 1, sin 0
        angle = row.to(tl.int64)[:, None] * D + i[None, :]
        cos_first = tl.load(cos + angle, mask=turned, other=1.0)
        sin_first = tl.load(sin + angle, mask=turned, other=0.0)
        cos_second = tl.load(cos + angle + HALF, mask=turned, other=1.0)
        sin_second = tl.load(sin + angle + HALF, mask=turned, other=0.0)
        first, second = first * cos_first - second * sin_first, second * cos_second + first * sin_second

    out = tl.where(part == 0, q, tl.where(part == 1, k, v))  # [BN / 2]
    head = pair // HALF - part * HEADS
    target = out[None, :] + row.to(tl.int64)[:, None] * (HEADS * D) + (head * D + i)[None, :]
    tl.store(target, first.to(q.dtype.element_ty), mask=inside)
    tl.store(target + HALF, second.to(q.dtype.element_ty), mask=inside)


def launch_qkv_rope(
    normed: Tensor,
    weight: Tensor,
    bias: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    out: tuple[Tensor, Tensor, Tensor],
    tile: Tile,
) -> None:
    """Fill q, k and v (T x h x D, contiguous) from normalised rows (T x d, contiguous)."""
    tokens, width = normed.shape
    _, heads, dim = out[0].shape
    if not tokens:
        return
    grid = (triton.cdiv(tokens, tile.block_m) * triton.cdiv(len(weight), tile.block_n),)
    # Without tables the arguments that stand for them are never read.
    tables = (normed, normed) if cos is None or sin is None else (cos.float().contiguous(), sin.float().contiguous())
    _qkv_rope_kernel[grid](
        normed, weight.contiguous(), bias.contiguous(), *tables, *out, tokens, width, heads, dim, cos is not None,
        tile.block_m, tile.block_n, tile.block_k, num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip


def norm_qkv_rope(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    weight: Tensor,
    bias: Tensor,
    cos: Tensor | None,
    sin: Tensor | None,
    num_heads: int,
    head_dim: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of normalised rows, queries and keys rotated where tables are given.

    Args:
        x: T x d, float32, float16 or bfloat16, on one device with the others, which but for the tables have its dtype.
        norm_weight, norm_bias, eps: LayerNorm's (d each).
        weight, bias: 3 h D x d and 3 h D: rows of q, of k, of v.
        cos, sin: T x D, computed with in float32; both or neither.
        num_heads, head_dim: h and D; D is even.

    Returns:
        q, k, v, T x h x D each, contiguous, x's dtype.

    Raises:
        ValueError: head_dim is odd.
    """
    if head_dim % 2:
        raise ValueError(f"norm_qkv_rope: the head dimension must be even, not {head_dim}")
    tile = table_for(x.device).choose("norm_qkv_rope", tokens=len(x), inputs=x.shape[1], outputs=len(weight))
    q, k, v = (x.new_empty(len(x), num_heads, head_dim) for _ in range(3))
    normed = layer_norm(x.contiguous(), norm_weight, norm_bias, eps)
    launch_qkv_rope(normed, weight, bias, cos, sin, (q, k, v), tile)
    return q, k, v


def specimens(table: ConfigTable) -> list[Specimen]:
    """The 7B's sizes with 8 heads of 80 (all tiles) and with 5, and CLIP's 9 heads of 64 without rotation; bfloat16."""
    found = [_specimen(tile, 1280, 8, 80, True) for tile in table.tiles("norm_qkv_rope")]
    for width, heads, dim, rope in ((1280, 5, 80, True), (1024, 9, 64, False)):
        tile = table.choose("norm_qkv_rope", tokens=4096, inputs=width, outputs=3 * heads * dim)
        found.append(_specimen(tile, width, heads, dim, rope))
    return found


def _specimen(tile: Tile, width: int, heads: int, dim: int, rope: bool) -> Specimen:
    pointers = dict.fromkeys(("x", "weight", "bias", "q", "k", "v"), "*bf16") | {"cos": "*fp32", "sin": "*fp32"}
    tiles = {"BM": tile.block_m, "BN": tile.block_n, "BK": tile.block_k}
    return Specimen(
        "norm_qkv_rope",
        f"{width} to {heads} heads of {dim}{' rotated' if rope else ''}, {tile}",
        _qkv_rope_kernel,
        pointers | {"tokens": "i32"},
        {"WIDTH": width, "HEADS": heads, "D": dim, "ROPE": rope, **tiles},
        tuple(pointers),
        tile.num_warps,
        tile.num_stages,
    )
