"""LayerNorm of whole rows, written once, for products with several column tiles.

Each column tile of such a product would otherwise normalise its rows again: by their instruction rates, converting and
scaling 128 x 64 numbers takes more than half the time that tensor cores need to multiply them by 128 columns. Writing
the rows costs one trip of T x d numbers through the L2 cache, and the product then finds both its factors where the
asynchronous copies put them. Mean and variance come from the row itself, its mean taken off first: nothing cancels.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from infoprune_kernels.specimens import Specimen

_ROWS = 4  # per program, so that gamma and beta are read once for all of them
_WARPS = 4


@triton.jit(do_not_specialize=["tokens"])
def _layer_norm_kernel(
    x, gamma, beta, out, tokens, eps, WIDTH: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    col = tl.arange(0, BLOCK)
    place = row.to(tl.int64)[:, None] * WIDTH + col[None, :]
    inside = (row[:, None] < tokens) & (col[None, :] < WIDTH)
    rows = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)  # [ROWS, BLOCK]
    mean = tl.sum(rows, 1) / WIDTH
    centred = tl.where(col[None, :] < WIDTH, rows - mean[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 1) / WIDTH + eps)
    g = tl.load(gamma + col, mask=col < WIDTH, other=0.0).to(tl.float32)  # [BLOCK]
    b = tl.load(beta + col, mask=col < WIDTH, other=0.0).to(tl.float32)
    normed = centred * scale[:, None] * g[None, :] + b[None, :]
    tl.store(out + place, normed.to(out.dtype.element_ty), mask=inside)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """The rows of x (T x d, contiguous, float32, float16 or bfloat16), normalised: T x d in x's dtype."""
    tokens, width = x.shape
    out = x.new_empty(tokens, width)
    if tokens:
        block = triton.next_power_of_2(width)
        _layer_norm_kernel[(triton.cdiv(tokens, _ROWS),)](
            x, weight.contiguous(), bias.contiguous(), out, tokens, eps, width, block, _ROWS, num_warps=_WARPS
        )
    return out


def specimen() -> Specimen:
    """The 7B's width, in bfloat16. No matrices: tensor cores and asynchronous copies are not asked for."""
    pointers = dict.fromkeys(("x", "gamma", "beta", "out"), "*bf16")
    return Specimen(
        "layer_norm",
        "1280",
        _layer_norm_kernel,
        pointers | {"tokens": "i32", "eps": "fp32"},
        {"WIDTH": 1280, "BLOCK": 2048, "ROWS": _ROWS},
        tuple(pointers),
        num_warps=_WARPS,
        num_stages=1,
    )
