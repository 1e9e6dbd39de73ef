"""x + fc2 act(fc1 norm(x)): the rows are normalised once, then two products; the activation ends the first one.

A gated FFN's first product takes the weight's rows in pairs, one of the gate beside the one that it multiplies, as
``norm_qkv_rope`` takes those that it rotates: in the accumulator both numbers are in one thread.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from infoprune_kernels.configs import ConfigTable, Tile, table_for
from infoprune_kernels.layer_norm import layer_norm
from infoprune_kernels.linear_residual import ACTIVATIONS, linear_specimen
from infoprune_kernels.linear_residual import linear as product
from infoprune_kernels.specimens import Specimen
from infoprune_kernels.tiles import multiply, place_of

GATED = "silu_gated"


@triton.jit(do_not_specialize=["tokens"])
def _gated_kernel(
    x, weight, bias, out, tokens,
    PAIRS: tl.constexpr, K: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    block, column_block = place_of(tl.program_id(0), tl.cdiv(tokens, BM), tl.cdiv(2 * PAIRS, BN))
    row = block * BM + tl.arange(0, BM)
    x_rows = x + tl.minimum(row, tokens - 1).to(tl.int64)[:, None] * K

    col = tl.arange(0, BN)
    source = tl.minimum(column_block * (BN // 2) + col // 2, PAIRS - 1) + col % 2 * PAIRS  # [BN] rows of the weight
    acc = multiply(tl.zeros([BM, BN], tl.float32), x_rows, weight + source[None, :] * K, K, BK)
    acc += tl.load(bias + source).to(tl.float32)[None, :]
    gate, other = acc.reshape(BM, BN // 2, 2).split()  # [BM, BN / 2] each

    pair = column_block * (BN // 2) + tl.arange(0, BN // 2)
    place = row.to(tl.int64)[:, None] * PAIRS + pair[None, :]
    inside = (row[:, None] < tokens) & (pair[None, :] < PAIRS)
    tl.store(out + place, (gate * tl.sigmoid(gate) * other).to(out.dtype.element_ty), mask=inside)


def gated_product(x: Tensor, weight: Tensor, bias: Tensor, tile: Tile) -> Tensor:
    """silu(x Gᵀ + g) * (x Uᵀ + u), T x m in x's dtype; x: T x K, weight: G over U (2m x K), bias: g, then u (2m)."""
    tokens, inputs = x.shape
    pairs = len(weight) // 2
    out = x.new_empty(tokens, pairs)
    if not tokens or not pairs:
        return out
    grid = (triton.cdiv(tokens, tile.block_m) * triton.cdiv(2 * pairs, tile.block_n),)
    _gated_kernel[grid](
        x, weight.contiguous(), bias.contiguous(), out, tokens, pairs, inputs,
        tile.block_m, tile.block_n, tile.block_k, num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return out


def ffn_dense(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    fc1_weight: Tensor,
    fc1_bias: Tensor,
    fc2_weight: Tensor,
    fc2_bias: Tensor,
    activation: str,
    linear: int = 0,
) -> Tensor:
    """An FFN with m hidden values, and the residual.

    Args:
        x: T x d, float32, float16 or bfloat16, on one device with the others, which have its dtype.
        norm_weight, norm_bias, eps: LayerNorm's (d each).
        fc1_weight, fc1_bias: m x d and m; with "silu_gated" 2m x d and 2m, the gate's rows first.
        fc2_weight, fc2_bias: d x m and d.
        activation: one of ACTIVATIONS, or "silu_gated".
        linear: so many of the last hidden values have no activation; 0 of a gated FFN.

    Returns:
        T x d, x's dtype.

    Raises:
        ValueError: an unknown activation, or linear hidden values of a gated FFN.
    """
    if activation not in (*ACTIVATIONS, GATED):
        raise ValueError(f"ffn_dense: unknown activation {activation!r}; known are {', '.join((*ACTIVATIONS, GATED))}")
    if linear and activation == GATED:
        raise ValueError(f"ffn_dense: a gated FFN has no linear hidden values; linear must be 0, not {linear}")
    table = table_for(x.device)
    first = table.choose("ffn_dense", tokens=len(x), width=x.shape[1], neurons=len(fc1_weight))
    second = table.choose("linear_residual", tokens=len(x), inputs=fc2_weight.shape[1], outputs=x.shape[1])
    x = x.contiguous()
    normed = layer_norm(x, norm_weight, norm_bias, eps)
    if activation == GATED:
        hidden = gated_product(normed, fc1_weight, fc1_bias, first)
    else:
        hidden = product(normed, fc1_weight, fc1_bias, first, activation=activation, linear_columns=linear)
    return product(hidden, fc2_weight, fc2_bias, second, residual=x)


def specimens(table: ConfigTable) -> list[Specimen]:
    """In bfloat16, both products of the 7B's dense FFN, of a quarter of its neurons with the other activations (which
    may be 640 neurons and a linear path of rank 640), and of Qwen2.5-VL's gated FFN.

    Of the first products of the largest and of the gated FFN all tiles; those of the second are ``linear_residual``'s.
    """
    found = []
    for tile in table.tiles("ffn_dense"):
        found.append(linear_specimen("ffn_dense", "fc1", tile, 1280, 5120, activation="quick_gelu"))
        found.append(_gated_specimen(tile, 1280, 3420))
    first = table.choose("ffn_dense", tokens=4096, width=1280, neurons=1280)
    found += [linear_specimen("ffn_dense", "fc1", first, 1280, 1280, activation=name) for name in ACTIVATIONS[1:]]
    found.append(linear_specimen("ffn_dense", "fc1", first, 1280, 1280, activation="quick_gelu", linear_columns=640))
    for hidden in (5120, 1280, 3420):
        second = table.choose("linear_residual", tokens=4096, inputs=hidden, outputs=1280)
        found.append(linear_specimen("ffn_dense", "fc2", second, hidden, 1280))
    return found


def _gated_specimen(tile: Tile, width: int, hidden: int) -> Specimen:
    pointers = dict.fromkeys(("x", "weight", "bias", "out"), "*bf16")
    return Specimen(
        "ffn_dense",
        f"fc1 {width} to twice {hidden} {GATED}, {tile}",
        _gated_kernel,
        pointers | {"tokens": "i32"},
        {"PAIRS": hidden, "K": width, "BM": tile.block_m, "BN": tile.block_n, "BK": tile.block_k},
        tuple(pointers),
        tile.num_warps,
        tile.num_stages,
    )
