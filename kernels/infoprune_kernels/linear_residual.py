"""x Wᵀ + bias, plus a residual or through an activation: one product whose epilogue is all that follows it.

One program computes one tile of the output. Activations are computed in float32, before the only rounding.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from infoprune_kernels.configs import ConfigTable, Tile, table_for
from infoprune_kernels.specimens import Specimen
from infoprune_kernels.tiles import multiply, place_of

ACTIVATIONS = ("quick_gelu", "gelu", "gelu_pytorch_tanh", "silu")


@triton.jit
def _activate(x, ACTIVATION: tl.constexpr):
    if ACTIVATION == "quick_gelu":
        return x * tl.sigmoid(1.702 * x)
    elif ACTIVATION == "silu":
        return x * tl.sigmoid(x)
    elif ACTIVATION == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    else:  # gelu_pytorch_tanh: (1 + tanh u) / 2 is sigmoid(2 u)
        return x * tl.sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))


@triton.jit(do_not_specialize=["tokens"])
def _linear_kernel(
    x, weight, bias, residual, out, tokens,
    N: tl.constexpr, K: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr,
    ACTIVATION: tl.constexpr, ACTIVE: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    block, column_block = place_of(tl.program_id(0), tl.cdiv(tokens, BM), tl.cdiv(N, BN))
    row = block * BM + tl.arange(0, BM)
    col = column_block * BN + tl.arange(0, BN)
    x_rows = x + tl.minimum(row, tokens - 1).to(tl.int64)[:, None] * K
    weight_rows = weight + tl.minimum(col, N - 1)[None, :] * K
    acc = multiply(tl.zeros([BM, BN], tl.float32), x_rows, weight_rows, K, BK)  # [BM, BN]
    if BIAS:
        acc += tl.load(bias + col, mask=col < N, other=0.0).to(tl.float32)[None, :]
    if ACTIVATION is not None:
        if ACTIVE == N:
            acc = _activate(acc, ACTIVATION)
        else:
            acc = tl.where(col[None, :] < ACTIVE, _activate(acc, ACTIVATION), acc)
    place = row.to(tl.int64)[:, None] * N + col[None, :]
    inside = (row[:, None] < tokens) & (col[None, :] < N)
    if RESIDUAL:
        acc += tl.load(residual + place, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + place, acc.to(out.dtype.element_ty), mask=inside)


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    tile: Tile,
    *,
    residual: Tensor | None = None,
    activation: str | None = None,
    linear_columns: int = 0,
) -> Tensor:
    """activation(x Wᵀ + bias) + residual, each where given; T x N in x's dtype.

    Args:
        x: T x K.
        weight: N x K.
        bias: N.
        tile: how the work is cut.
        residual: T x N.
        activation: one of ACTIVATIONS.
        linear_columns: so many of the last columns have no activation.
    """
    tokens, inputs = x.shape
    outputs = len(weight)
    out = x.new_empty(tokens, outputs)
    if not tokens or not outputs:
        return out
    grid = (triton.cdiv(tokens, tile.block_m) * triton.cdiv(outputs, tile.block_n),)
    # An argument that a form lacks is given as the output, and never read.
    given = (out if tensor is None else tensor.contiguous() for tensor in (x, weight, bias, residual))
    _linear_kernel[grid](
        *given, out, tokens,
        outputs, inputs, bias is not None, residual is not None, activation, outputs - linear_columns,
        tile.block_m, tile.block_n, tile.block_k, num_warps=tile.num_warps, num_stages=tile.num_stages,
    )  # fmt: skip
    return out


def linear_residual(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    """residual + x Wᵀ + bias.

    Args:
        x: T x n, float32, float16 or bfloat16, on one device with the others, which have its dtype.
        weight: d x n.
        bias: d.
        residual: T x d.

    Returns:
        T x d, x's dtype.
    """
    tile = table_for(x.device).choose("linear_residual", tokens=len(x), inputs=x.shape[1], outputs=len(weight))
    return linear(x, weight, bias, tile, residual=residual)


def specimens(table: ConfigTable) -> list[Specimen]:
    """The 7B's output projection with 8 heads of 80 (all tiles) and with 5, in bfloat16."""
    found = [linear_specimen("linear_residual", "", tile, 8 * 80, 1280) for tile in table.tiles("linear_residual")]
    tile = table.choose("linear_residual", tokens=4096, inputs=5 * 80, outputs=1280)
    return [*found, linear_specimen("linear_residual", "", tile, 5 * 80, 1280)]


def linear_specimen(
    operator: str,
    part: str,
    tile: Tile,
    inputs: int,
    outputs: int,
    *,
    bias: bool = True,
    activation: str | None = None,
    linear_columns: int = 0,
) -> Specimen:
    """A part of an operator that is such a product, in bfloat16; with a residual if it has a bias and no activation."""
    pointers = dict.fromkeys(("x", "weight", "bias", "residual", "out"), "*bf16")
    flags = {"BIAS": bias, "RESIDUAL": bias and activation is None}
    bend = {"ACTIVATION": activation, "ACTIVE": outputs - linear_columns}
    ending = f"{activation or ''}{f' but {linear_columns}' if linear_columns else ''}"
    return Specimen(
        operator,
        f"{part} {inputs} to {outputs} {ending}".strip() + f", {tile}",
        _linear_kernel,
        pointers | {"tokens": "i32"},
        {"N": outputs, "K": inputs, **flags, **bend, "BM": tile.block_m, "BN": tile.block_n, "BK": tile.block_k},
        tuple(pointers),
        tile.num_warps,
        tile.num_stages,
    )
