"""The operators' definitions in plain PyTorch, for any device: what every other backend must equal.

They are also what the backward passes differentiate, so nothing here overwrites a tensor that
autograd would need. Shapes are in ``schema.py``; the arguments have been checked (``checks.py``).
"""

from __future__ import annotations

from collections.abc import Callable
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


def _norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)


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
) -> tuple[Tensor, Tensor, Tensor]:
    normed = _norm(x, norm_weight, norm_bias, eps)
    # One product per part leaves q, k and v contiguous; slicing one wide product would cost a copy each.
    q, k, v = (
        F.linear(normed, part_weight, part_bias).view(-1, num_heads, head_dim)
        for part_weight, part_bias in zip(weight.chunk(3), bias.chunk(3), strict=True)
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


def linear_residual(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor) -> Tensor:
    return F.linear(x, weight, bias).add_(residual)


def ffn_lowrank(
    x: Tensor, norm_weight: Tensor, norm_bias: Tensor, eps: float, down: Tensor, up: Tensor | None, bias: Tensor
) -> Tensor:
    normed = _norm(x, norm_weight, norm_bias, eps)
    mapped = F.linear(normed, down, bias) if up is None else F.linear(F.linear(normed, down), up, bias)
    return mapped.add_(x)


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
) -> Tensor:
    hidden = F.linear(_norm(x, norm_weight, norm_bias, eps), fc1_weight, fc1_bias)
    return F.linear(ACTIVATIONS[activation](hidden), fc2_weight, fc2_bias).add_(x)
