"""What each operator demands of its arguments; a breach is one sentence that names the argument."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from infoprune_rt.errors import InfopruneError
from infoprune_rt.ops.plain import ACTIVATIONS, GATED


def _shape(op: str, name: str, tensor: Tensor, *sizes: int | None) -> None:
    """``tensor`` must have these sizes; None admits any."""
    fits = tensor.ndim == len(sizes) and all(
        want is None or have == want for have, want in zip(tensor.shape, sizes, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in sizes)
        found = ", ".join(str(size) for size in tensor.shape)
        raise InfopruneError(f"infoprune::{op}: {name} must have shape ({wanted}), not ({found})")


def _same_kind(op: str, x: Tensor, **others: Tensor) -> None:
    if not x.is_floating_point():
        raise InfopruneError(f"infoprune::{op}: the input must be a floating-point tensor, not {x.dtype}")
    for name, tensor in others.items():
        if tensor.dtype != x.dtype or tensor.device != x.device:
            raise InfopruneError(
                f"infoprune::{op}: {name} is {tensor.dtype} on {tensor.device}, but the input is {x.dtype} "
                f"on {x.device}; convert one of them"
            )


def _scaled(op: str, x: Tensor, name: str, weight: Tensor, scale_name: str, scale: Tensor | None) -> None:
    """A weight with a scale is int8, one without has x's dtype."""
    if (scale is None) == (weight.dtype == torch.int8):
        raise InfopruneError(
            f"infoprune::{op}: a weight is int8 exactly where its scale is given, but {name} is {weight.dtype} and "
            f"{scale_name} is {'missing' if scale is None else 'there'}"
        )
    if scale is None:
        _same_kind(op, x, **{name: weight})
        return
    _shape(op, scale_name, scale, weight.shape[0])
    _same_kind(op, x, **{scale_name: scale})
    if weight.device != x.device:
        raise InfopruneError(f"infoprune::{op}: {name} is on {weight.device}, but the input is on {x.device}")


def _norm(op: str, x: Tensor, norm_weight: Tensor, norm_bias: Tensor) -> int:
    _shape(op, "x", x, None, None)
    width = x.shape[1]
    _shape(op, "norm_weight", norm_weight, width)
    _shape(op, "norm_bias", norm_bias, width)
    _same_kind(op, x, norm_weight=norm_weight, norm_bias=norm_bias)
    return width


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
) -> None:
    op = "norm_qkv_rope"
    width = _norm(op, x, norm_weight, norm_bias)
    if num_heads < 1 or head_dim < 1:
        raise InfopruneError(
            f"infoprune::{op}: num_heads and head_dim must be positive, not {num_heads} and {head_dim}"
        )
    _shape(op, "weight", weight, 3 * num_heads * head_dim, width)
    _shape(op, "bias", bias, 3 * num_heads * head_dim)
    _same_kind(op, x, bias=bias)
    _scaled(op, x, "weight", weight, "weight_scale", weight_scale)
    if (cos is None) != (sin is None):
        raise InfopruneError(f"infoprune::{op}: cos and sin go together; give both or neither")
    if cos is not None and sin is not None:
        if head_dim % 2:
            raise InfopruneError(f"infoprune::{op}: rotary positions need an even head_dim, not {head_dim}")
        for name, table in (("cos", cos), ("sin", sin)):
            _shape(op, name, table, x.shape[0], head_dim)
            if table.dtype not in (torch.float32, x.dtype) or table.device != x.device:
                raise InfopruneError(
                    f"infoprune::{op}: {name} must be float32 on {x.device}, not {table.dtype} on {table.device}"
                )


def attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float) -> None:
    op = "attention"
    _shape(op, "q", q, None, None, None)
    _shape(op, "k", k, *q.shape)
    _shape(op, "v", v, *q.shape)
    _same_kind(op, q, k=k, v=v)
    if cu_seqlens.ndim != 1 or cu_seqlens.dtype != torch.int64 or cu_seqlens.device.type != "cpu":
        raise InfopruneError(
            f"infoprune::{op}: cu_seqlens must be a one-dimensional int64 tensor on the CPU, not "
            f"{cu_seqlens.ndim}-dimensional {cu_seqlens.dtype} on {cu_seqlens.device}"
        )
    bounds = cu_seqlens.tolist()
    if len(bounds) < 2 or bounds[0] != 0 or bounds[-1] != q.shape[0] or any(a > b for a, b in pairwise(bounds)):
        raise InfopruneError(
            f"infoprune::{op}: cu_seqlens must rise from 0 to the number of rows ({q.shape[0]}), but it is {bounds}"
        )


def linear_residual(
    x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor, weight_scale: Tensor | None = None
) -> None:
    op = "linear_residual"
    _shape(op, "x", x, None, None)
    _shape(op, "weight", weight, None, x.shape[1])
    _shape(op, "bias", bias, weight.shape[0])
    _shape(op, "residual", residual, x.shape[0], weight.shape[0])
    _same_kind(op, x, bias=bias, residual=residual)
    _scaled(op, x, "weight", weight, "weight_scale", weight_scale)


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
) -> None:
    op = "ffn_lowrank"
    width = _norm(op, x, norm_weight, norm_bias)
    _shape(op, "down", down, width if up is None else None, width)
    _shape(op, "bias", bias, width)
    _same_kind(op, x, bias=bias)
    _scaled(op, x, "down", down, "down_scale", down_scale)
    if up is not None:
        _shape(op, "up", up, width, down.shape[0])
        _scaled(op, x, "up", up, "up_scale", up_scale)
    elif up_scale is not None:
        raise InfopruneError(f"infoprune::{op}: up_scale is there, but up is missing; give both or neither")


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
) -> None:
    op = "ffn_dense"
    width = _norm(op, x, norm_weight, norm_bias)
    _shape(op, "fc1_weight", fc1_weight, None, width)
    rows = fc1_weight.shape[0]
    hidden = _hidden_values(op, rows, activation, linear)
    _shape(op, "fc1_bias", fc1_bias, rows)
    _shape(op, "fc2_weight", fc2_weight, width, hidden)
    _shape(op, "fc2_bias", fc2_bias, width)
    _same_kind(op, x, fc1_bias=fc1_bias, fc2_bias=fc2_bias)
    _scaled(op, x, "fc1_weight", fc1_weight, "fc1_scale", fc1_scale)
    _scaled(op, x, "fc2_weight", fc2_weight, "fc2_scale", fc2_scale)


def _hidden_values(op: str, rows: int, activation: str, linear: int) -> int:
    """How many hidden values a first layer of so many rows gives."""
    if activation not in ACTIVATIONS and activation not in GATED:
        raise InfopruneError(
            f"infoprune::{op}: unknown activation {activation!r}; known are {', '.join(sorted(ACTIVATIONS | GATED))}"
        )
    if activation not in GATED:
        if not 0 <= linear <= rows:
            raise InfopruneError(
                f"infoprune::{op}: linear must be a number of hidden values in 0..{rows}, not {linear}"
            )
        return rows
    if linear:
        raise InfopruneError(f"infoprune::{op}: a gated FFN has no linear hidden values, but linear is {linear}")
    if rows % 2:
        raise InfopruneError(f"infoprune::{op}: a gated FFN's fc1_weight must have an even number of rows, not {rows}")
    return rows // 2


CHECKS: dict[str, Any] = {
    check.__name__: check for check in (norm_qkv_rope, attention, linear_residual, ffn_lowrank, ffn_dense)
}
