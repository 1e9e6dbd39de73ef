"""The operators' outputs without their values, for ``torch.compile`` and ``torch.export``."""

from __future__ import annotations

from torch import Tensor


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
    q, k, v = (x.new_empty(x.shape[0], num_heads, head_dim) for _ in range(3))
    return q, k, v


def attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float) -> Tensor:
    return q.new_empty(q.shape[0], q.shape[1] * q.shape[2])


def linear_residual(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, weight_scale: Tensor | None = None
) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


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
    return x.new_empty(x.shape)


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
    return x.new_empty(x.shape)
