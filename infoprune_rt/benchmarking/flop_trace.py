"""FLOPs as counted while a model runs: what formulas are held against.

PyTorch's counter follows operators as they are called. It knows neither ours nor the attention that PyTorch's CPU
build chooses, so that these are told to it here. A multiply-add counts as two; norms, activations and softmax as
nothing; attention that is causal as the whole square, as elsewhere in the project.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import infoprune_rt.ops  # noqa: F401  (registers torch.ops.infoprune)

_OURS = torch.ops.infoprune


def counted_flops(run: Callable[[], object]) -> int:
    """FLOPs of one call of ``run``, kernels that PyTorch cannot follow replaced by its own operators."""
    with FlopCounterMode(display=False, custom_mapping=_FORMULAS) as counter:
        run()
    return int(counter.get_total_flops())


def _raw(formula: Callable[..., int]) -> Callable[..., int]:
    """Has the counter hand over tensors rather than their shapes."""
    formula._get_raw = True  # type: ignore[attr-defined]
    return formula


def _product(rows: int, weight: Tensor) -> int:
    return 2 * rows * weight.numel()


@_raw
def _norm_qkv_rope(x: Tensor, *args: Any, **_: Any) -> int:
    return _product(len(x), args[3])


@_raw
def _attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, *_: Any, **__: Any) -> int:
    return 4 * q.shape[1] * q.shape[2] * int(cu_seqlens.diff().square().sum())


@_raw
def _linear_residual(x: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    return _product(len(x), weight)


@_raw
def _ffn_lowrank(x: Tensor, *args: Any, **_: Any) -> int:
    down, up = args[3], args[4]
    return _product(len(x), down) + (0 if up is None else _product(len(x), up))


@_raw
def _ffn_dense(x: Tensor, *args: Any, **_: Any) -> int:
    return _product(len(x), args[3]) + _product(len(x), args[5])


@_raw
def _cpu_flash(q: Tensor, k: Tensor, v: Tensor, *_: Any, **__: Any) -> int:
    batch, heads, rows, dim = q.shape
    return 2 * batch * heads * rows * k.shape[2] * (dim + v.shape[3])


_FORMULAS: dict[Any, Callable[..., int]] = {
    _OURS.norm_qkv_rope: _norm_qkv_rope,
    _OURS.attention: _attention,
    _OURS.linear_residual: _linear_residual,
    _OURS.ffn_lowrank: _ffn_lowrank,
    _OURS.ffn_dense: _ffn_dense,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_flash,
}
