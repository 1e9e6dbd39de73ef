"""The operators' definitions in plain PyTorch, for any device: what every other backend must equal.

They are also what the backward passes differentiate, so nothing here overwrites a tensor that
autograd would need. Shapes are in ``schema.py``; the arguments have been checked (``checks.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor


def _quick_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "quick_gelu": _quick_gelu,
    "gelu": F.gelu,
    "gelu_pytorch_tanh": _gelu_tanh,
    "silu": F.silu,
}
GATED: dict[str, Callable[[Tensor], Tensor]] = {"silu_gated": F.silu}  # what a gate goes through


def activated(first: Tensor, activation: str, linear: int = 0) -> Tensor:
    """An FFN's hidden values (... x m) from what its first layer gives; the last ``linear`` of them are that as it is.

    Of a gated FFN the first layer gives ... x 2m: the gate, then what it multiplies.
    """
    if activation in GATED:
        gate, other = first.chunk(2, dim=-1)
        return GATED[activation](gate) * other
    if not linear:
        return ACTIVATIONS[activation](first)
    neurons = first.shape[-1] - linear
    return torch.cat((ACTIVATIONS[activation](first[..., :neurons]), first[..., neurons:]), dim=-1)


def _norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """x (T x K) times an int8 weight (N x K) with its scale per row (N), plus bias: T x N in x's dtype.

    Each row of x becomes whole numbers in -127..127, its largest magnitude 127; the product of whole numbers is exact,
    the rest is float32 (float64 where x is). A row with NaN or infinity gives NaN; one whose largest magnitude is so
    small that 127 divided by it overflows counts as zeros.
    """
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    largest = wide.abs().amax(-1, keepdim=True)
    finite, to_codes = largest.isfinite(), 127 / largest
    codes = (wide * to_codes).where(finite & to_codes.isfinite(), 0).round()
    steps = (largest / 127).where(finite, torch.nan)
    out = _whole_product(codes.float(), weight.float()) * steps * scale
    return (out if bias is None else out + bias).to(x.dtype)


def _whole_product(codes: Tensor, weight: Tensor) -> Tensor:
    """T x N int32, exact, of whole numbers in -127..127 and int8 weights (both given as float32).

    Not torch._int_mm: on CPUs without VNNI its sums of two products saturate at 16 bits.
    """
    longest = 2**24 // (127 * 128)  # so many products sum up exactly in float32
    parts = zip(torch.split(codes, longest, 1), torch.split(weight, longest, 1), strict=True)
    return reduce(torch.add, (F.linear(*part).int() for part in parts))


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None) -> Tensor:
    return F.linear(x, weight, bias) if scale is None else int8_linear(x, weight, scale, bias)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate-half rotary embedding; x is T x h x D, cos and sin T x 1 x D in float32 (so is the sum)."""
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


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
    weight_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    normed = _norm(x, norm_weight, norm_bias, eps)
    # One product per part leaves q, k and v contiguous; slicing one wide product would cost a copy each.
    scales = (None, None, None) if weight_scale is None else weight_scale.chunk(3)
    q, k, v = (
        _linear(normed, *part).view(-1, num_heads, head_dim)
        for part in zip(weight.chunk(3), bias.chunk(3), scales, strict=True)
    )
    if cos is not None and sin is not None:
        cos, sin = cos[:, None], sin[:, None]
        q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
    return q, k, v


def attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float) -> Tensor:
    outputs = []
    start = 0
    # Neighbours of equal length (the frames of a video, images of one size) run as one batch.
    for length, run in groupby(cu_seqlens.diff().tolist()):
        count = len(list(run))
        stop = start + count * length
        qs, ks, vs = (part[start:stop].view(count, length, *part.shape[1:]).transpose(1, 2) for part in (q, k, v))
        attended = F.scaled_dot_product_attention(qs, ks, vs, scale=scale)
        outputs.append(attended.transpose(1, 2).reshape(stop - start, q.shape[1] * q.shape[2]))
        start = stop
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def linear_residual(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, weight_scale: Tensor | None = None
) -> Tensor:
    return _linear(x, weight, bias, weight_scale).add_(residual)


def ffn_lowrank(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    eps: float,
    down: Tensor,
    up: Tensor | None,
    bias: Tensor,
    down_scale: Tensor | None = None,
    up_scale: Tensor | None = None,
) -> Tensor:
    normed = _norm(x, norm_weight, norm_bias, eps)
    if up is None:
        return _linear(normed, down, bias, down_scale).add_(x)
    return _linear(_linear(normed, down, None, down_scale), up, bias, up_scale).add_(x)


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
    fc1_scale: Tensor | None = None,
    fc2_scale: Tensor | None = None,
    linear: int = 0,
) -> Tensor:
    first = _linear(_norm(x, norm_weight, norm_bias, eps), fc1_weight, fc1_bias, fc1_scale)
    return _linear(activated(first, activation, linear), fc2_weight, fc2_bias, fc2_scale).add_(x)
