"""x + up (down norm(x)) + bias in one kernel, while all ranks of a block of rows fit on the chip.

One program owns its rows from the first load to the last store: it takes their mean and variance, normalises them
once on the way into the product with ``down``, keeps the result, rounded to the input's dtype, in registers, and
multiplies it by ``up`` a few output columns at a time. x is read from memory once; the later readings, to normalise
and for the residual, come out of the L2 cache. The ranks are cut into two powers of two (384 = 256 + 128), not padded
to one.

Above the ranks that the tables serve so, ``down`` and ``up`` are two products; a merged map is one.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from infoprune_kernels.attention_parts import split_head
from infoprune_kernels.configs import ConfigTable, Tile, table_for
from infoprune_kernels.layer_norm import layer_norm
from infoprune_kernels.linear_residual import linear, linear_specimen
from infoprune_kernels.specimens import Specimen


@triton.jit
def _row_tile(x_rows, start, WIDTH: tl.constexpr, BK: tl.constexpr):  # [BM, BK]
    col = start + tl.arange(0, BK)
    if WIDTH % BK == 0:
        return tl.load(x_rows + col[None, :])
    return tl.load(x_rows + col[None, :], mask=col[None, :] < WIDTH, other=0.0)


@triton.jit
def _statistics(x_rows, eps, WIDTH: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr):
    """Mean and 1 / deviation of rows (BM each).

    Sums are of distances from the mean of a row's first columns. It lies near enough to the row's mean that nothing
    cancels: its squared distance is at most WIDTH / BK variances, whatever the row.
    """
    FIRST: tl.constexpr = min(BK, WIDTH)
    shift = tl.sum(_row_tile(x_rows, 0, WIDTH, BK).to(tl.float32), 1) / FIRST
    sums, squares = tl.zeros([BM, BK], tl.float32), tl.zeros([BM, BK], tl.float32)
    for start in tl.range(0, WIDTH, BK):
        away = _row_tile(x_rows, start, WIDTH, BK).to(tl.float32) - shift[:, None]
        if WIDTH % BK:
            away = tl.where(start + tl.arange(0, BK)[None, :] < WIDTH, away, 0.0)
        sums += away
        squares += away * away
    mean = tl.sum(sums, 1) / WIDTH
    return shift + mean, tl.rsqrt(tl.sum(squares, 1) / WIDTH - mean * mean + eps)


@triton.jit
def _column_tile(weight, start, rank, WIDTH: tl.constexpr, RANK: tl.constexpr, BK: tl.constexpr):  # [BK, ranks]
    """Columns of ``down``, transposed. Beyond its rows stands the last one; ``up`` has zeros there."""
    col = start + tl.arange(0, BK)
    pointers = weight + tl.minimum(rank, RANK - 1)[None, :] * WIDTH + col[:, None]
    if WIDTH % BK == 0:
        return tl.load(pointers)
    return tl.load(pointers, mask=col[:, None] < WIDTH, other=0.0)


@triton.jit
def _up_tile(up, col, rank, WIDTH: tl.constexpr, RANK: tl.constexpr):  # [ranks, BN]
    pointers = up + tl.minimum(col, WIDTH - 1)[None, :] * RANK + rank[:, None]
    return tl.load(pointers, mask=rank[:, None] < RANK, other=0.0)


@triton.jit(do_not_specialize=["tokens"])
def _ffn_lowrank_kernel(
    x, gamma, beta, down, up, bias, out, tokens, eps,
    WIDTH: tl.constexpr, RANK: tl.constexpr, MAIN: tl.constexpr, TAIL: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * BM + tl.arange(0, BM)
    x_rows = x + tl.minimum(row, tokens - 1).to(tl.int64)[:, None] * WIDTH
    mean, scale = _statistics(x_rows, eps, WIDTH, BM, BK)

    rank = tl.arange(0, MAIN)
    acc = tl.zeros([BM, MAIN], tl.float32)
    # Without a tail these two stand for nothing, and the compiler drops them.
    rank_tail, acc_tail = rank, acc
    if TAIL:
        rank_tail = MAIN + tl.arange(0, TAIL)
        acc_tail = tl.zeros([BM, TAIL], tl.float32)
    for start in tl.range(0, WIDTH, BK):
        col = start + tl.arange(0, BK)
        g = tl.load(gamma + col, mask=col < WIDTH, other=0.0).to(tl.float32)  # [BK]
        b = tl.load(beta + col, mask=col < WIDTH, other=0.0).to(tl.float32)
        rows = _row_tile(x_rows, start, WIDTH, BK).to(tl.float32)
        normed = ((rows - mean[:, None]) * scale[:, None] * g[None, :] + b[None, :]).to(x.dtype.element_ty)  # [BM, BK]
        acc = tl.dot(normed, _column_tile(down, start, rank, WIDTH, RANK, BK), acc, input_precision="ieee")
        if TAIL:
            down_tail = _column_tile(down, start, rank_tail, WIDTH, RANK, BK)
            acc_tail = tl.dot(normed, down_tail, acc_tail, input_precision="ieee")

    hidden = acc.to(x.dtype.element_ty)  # [BM, MAIN]
    hidden_tail = acc_tail.to(x.dtype.element_ty)  # [BM, TAIL]
    for start in tl.range(0, WIDTH, BN):
        col = start + tl.arange(0, BN)
        mapped = tl.dot(hidden, _up_tile(up, col, rank, WIDTH, RANK), input_precision="ieee")  # [BM, BN]
        if TAIL:
            mapped = tl.dot(hidden_tail, _up_tile(up, col, rank_tail, WIDTH, RANK), mapped, input_precision="ieee")
        mapped += tl.load(bias + col, mask=col < WIDTH, other=0.0).to(tl.float32)[None, :]
        mapped += _row_tile(x_rows, start, WIDTH, BN).to(tl.float32)
        target = out + row.to(tl.int64)[:, None] * WIDTH + col[None, :]
        tl.store(target, mapped.to(x.dtype.element_ty), mask=(row[:, None] < tokens) & (col[None, :] < WIDTH))


def launch_ffn_lowrank(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float, down: Tensor, up: Tensor, bias: Tensor, tile: Tile
) -> Tensor:
    """The one-kernel form; x (T x d) is contiguous."""
    tokens, width = x.shape
    out = x.new_empty(tokens, width)
    if tokens:
        rest = (t.contiguous() for t in (norm_weight, norm_bias, down, up, bias))
        _ffn_lowrank_kernel[(triton.cdiv(tokens, tile.block_m),)](
            x, *rest, out, tokens, eps, width, len(down), *split_head(len(down)),
            tile.block_m, tile.block_n, tile.block_k, num_warps=tile.num_warps, num_stages=tile.num_stages,
        )  # fmt: skip
    return out


def two_products(table: ConfigTable, tokens: int, width: int, rank: int) -> tuple[Tile, Tile]:
    """The tiles of the products with ``down`` and with ``up``."""
    return (
        table.choose("linear_residual", tokens=tokens, inputs=width, outputs=rank),
        table.choose("linear_residual", tokens=tokens, inputs=rank, outputs=width),
    )


def launch_two_products(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    down: Tensor,
    up: Tensor,
    bias: Tensor,
    tiles: tuple[Tile, Tile],
) -> Tensor:
    """LayerNorm, the product with ``down``, and that with ``up``; x (T x d) is contiguous."""
    hidden = linear(layer_norm(x, norm_weight, norm_bias, eps), down, None, tiles[0])
    return linear(hidden, up, bias, tiles[1], residual=x)


def ffn_lowrank(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    down: Tensor,
    up: Tensor | None,
    bias: Tensor,
) -> Tensor:
    """A linear map of rank k of the normalised rows, and the residual.

    Args:
        x: T x d, float32, float16 or bfloat16, on one device with the others, which have its dtype.
        norm_weight, norm_bias, eps: LayerNorm's (d each).
        down: k x d; without ``up`` the merged map, d x d.
        up: d x k.
        bias: d.

    Returns:
        T x d, x's dtype.
    """
    table = table_for(x.device)
    tokens, width = x.shape
    rank = len(down)
    x = x.contiguous()
    if up is None:
        merged = table.choose("linear_residual", tokens=tokens, inputs=width, outputs=rank)
        return linear(layer_norm(x, norm_weight, norm_bias, eps), down, bias, merged, residual=x)
    tile = table.find("ffn_lowrank", tokens=tokens, width=width, rank=rank)
    if tile is None:
        tiles = two_products(table, tokens, width, rank)
        return launch_two_products(x, norm_weight, norm_bias, eps, down, up, bias, tiles)
    return launch_ffn_lowrank(x, norm_weight, norm_bias, eps, down, up, bias, tile)


def specimens(table: ConfigTable) -> list[Specimen]:
    """The 7B's width at ranks on and off the powers of two, all tiles; by two products; and merged. In bfloat16."""
    found = []
    for rank in (64, 128, 256, 384, 512, 640):
        found += [_specimen(tile, rank) for tile in table.tiles("ffn_lowrank", width=1280, rank=rank)]
    found += _two_products(table, 640)
    merged = table.choose("linear_residual", tokens=4096, inputs=1280, outputs=1280)
    return [*found, linear_specimen("ffn_lowrank", "merged", merged, 1280, 1280)]


def _two_products(table: ConfigTable, rank: int) -> list[Specimen]:
    first, second = two_products(table, 4096, 1280, rank)
    return [
        linear_specimen("ffn_lowrank", "down", first, 1280, rank, bias=False),
        linear_specimen("ffn_lowrank", "up", second, rank, 1280),
    ]


def _specimen(tile: Tile, rank: int) -> Specimen:
    main, tail = split_head(rank)
    pointers = dict.fromkeys(("x", "gamma", "beta", "down", "up", "bias", "out"), "*bf16")
    tiles = {"BM": tile.block_m, "BN": tile.block_n, "BK": tile.block_k}
    return Specimen(
        "ffn_lowrank",
        f"1280, rank {rank}, {tile}",
        _ffn_lowrank_kernel,
        pointers | {"tokens": "i32", "eps": "fp32"},
        {"WIDTH": 1280, "RANK": rank, "MAIN": main, "TAIL": tail, **tiles},
        tuple(pointers),
        tile.num_warps,
        tile.num_stages,
    )
