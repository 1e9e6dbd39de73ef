"""Random arguments for the five operators, and their definitions written out a second time, step by step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

OPS = torch.ops.infoprune


def rand(*sizes: int, scale: float = 1.0) -> Tensor:
    return torch.randn(*sizes, dtype=torch.float64) * scale


def norm_args(d: int) -> tuple[Tensor, Tensor, float]:
    return 1 + rand(d, scale=0.2), rand(d, scale=0.2), 1e-6


def qkv_case(tokens: int, d: int, heads: int, head_dim: int, rope: bool) -> tuple[Any, ...]:
    rows = 3 * heads * head_dim
    angles = rand(tokens, head_dim // 2, scale=3).repeat(1, 2)
    tables = (angles.cos(), angles.sin()) if rope else (None, None)
    weight, bias = rand(rows, d, scale=d**-0.5), rand(rows, scale=0.2)
    return rand(tokens, d), *norm_args(d), weight, bias, *tables, heads, head_dim


def attention_case(lengths: list[int], heads: int, head_dim: int) -> tuple[Any, ...]:
    q, k, v = (rand(sum(lengths), heads, head_dim) for _ in range(3))
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    return q, k, v, bounds, head_dim**-0.5


def linear_case(tokens: int, n: int, d: int) -> tuple[Any, ...]:
    return rand(tokens, n), rand(d, n, scale=n**-0.5), rand(d), rand(tokens, d)


def lowrank_case(tokens: int, d: int, rank: int | None) -> tuple[Any, ...]:
    up = None if rank is None else rand(d, rank, scale=rank**-0.5)
    return rand(tokens, d), *norm_args(d), rand(rank or d, d, scale=d**-0.5), up, rand(d)


def dense_case(tokens: int, d: int, hidden: int, activation: str) -> tuple[Any, ...]:
    weights = rand(hidden, d, scale=d**-0.5), rand(hidden), rand(d, hidden, scale=hidden**-0.5), rand(d)
    return rand(tokens, d), *norm_args(d), *weights, activation


def hybrid_case(tokens: int, d: int, neurons: int, linear: int, activation: str) -> tuple[Any, ...]:
    return *dense_case(tokens, d, neurons + linear, activation), None, None, linear


def gated_case(tokens: int, d: int, hidden: int) -> tuple[Any, ...]:
    first = rand(2 * hidden, d, scale=d**-0.5), rand(2 * hidden)
    return rand(tokens, d), *norm_args(d), *first, rand(d, hidden, scale=hidden**-0.5), rand(d), "silu_gated"


def int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """A weight's int8 form and its scale per row, exact in every dtype."""
    steps = weight.abs().amax(1) / 127
    scale = torch.exp2(steps.log2().ceil())
    return (weight / scale[:, None]).round().to(torch.int8), scale


WEIGHTS = {"norm_qkv_rope": (4,), "linear_residual": (1,), "ffn_lowrank": (4, 5), "ffn_dense": (4, 6)}
_SCALES_FROM = {"norm_qkv_rope": 10, "linear_residual": 4, "ffn_lowrank": 7, "ffn_dense": 9}

Arguments = tuple[Any, ...]


def split(name: str, args: Arguments) -> tuple[Arguments, Arguments, Arguments]:
    """Arguments before the scales of int8 weights, the scales (None where left out), and those behind."""
    first = _SCALES_FROM[name]
    last = first + len(WEIGHTS[name])
    scales = args[first:last]
    return args[:first], scales + (None,) * (last - first - len(scales)), args[last:]


def quantized(name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The same arguments with int8 weights, and their scales behind."""
    before, _, behind = split(name, args)
    changed, scales = list(before), []
    for place in WEIGHTS[name]:
        found = (None, None) if args[place] is None else int8(args[place])
        changed[place] = found[0]
        scales.append(found[1])
    return (*changed, *scales, *behind)


def dequantized(name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The float arguments that quantised ones stand for."""
    before, scales, behind = split(name, args)
    changed = list(before)
    for place, scale in zip(WEIGHTS[name], scales, strict=True):
        changed[place] = None if scale is None else args[place].to(scale.dtype) * scale[:, None]
    return (*changed, *(None for _ in scales), *behind)


def int8_tolerances(name: str, args: tuple[Any, ...]) -> list[Tensor]:
    """How far each output of quantised arguments may be from the float64 definition.

    Rounding upstream moves some activations to the next code. That costs no more than quantising them did, twice over,
    beside what the float operator's own rounding costs.
    """
    plain = dequantized(name, args)
    exact = outputs(DEFINITIONS[name](*cast(args, torch.float64)))
    smooth = outputs(DEFINITIONS[name](*cast(plain, torch.float64)))
    naive = outputs(DEFINITIONS[name](*plain))
    eps = torch.finfo(args[0].dtype).eps
    return [
        2 * (e - s).abs().max() + 2 * (n - s).abs().max() + eps * e.abs().max()
        for e, s, n in zip(exact, smooth, naive, strict=True)
    ]


CASES: dict[str, tuple[str, Callable[[], tuple[Any, ...]]]] = {
    "qkv-rope": ("norm_qkv_rope", lambda: qkv_case(11, 30, 3, 12, rope=True)),
    "qkv-plain": ("norm_qkv_rope", lambda: qkv_case(7, 20, 1, 5, rope=False)),
    "qkv-one-token": ("norm_qkv_rope", lambda: qkv_case(1, 16, 5, 8, rope=True)),
    "attention-ragged": ("attention", lambda: attention_case([3, 1, 17, 6], 3, 20)),
    "attention-equal": ("attention", lambda: attention_case([5, 5, 5], 1, 8)),
    "attention-runs": ("attention", lambda: attention_case([4, 4, 9, 0, 4], 2, 10)),
    "linear": ("linear_residual", lambda: linear_case(9, 7, 22)),
    "lowrank": ("ffn_lowrank", lambda: lowrank_case(9, 22, 5)),
    "rank-1": ("ffn_lowrank", lambda: lowrank_case(3, 22, 1)),
    "merged": ("ffn_lowrank", lambda: lowrank_case(9, 22, None)),
    "quick_gelu": ("ffn_dense", lambda: dense_case(9, 14, 33, "quick_gelu")),
    "gelu": ("ffn_dense", lambda: dense_case(9, 14, 33, "gelu")),
    "gelu_pytorch_tanh": ("ffn_dense", lambda: dense_case(9, 14, 33, "gelu_pytorch_tanh")),
    "silu-1-neuron": ("ffn_dense", lambda: dense_case(2, 14, 1, "silu")),
    "hybrid": ("ffn_dense", lambda: hybrid_case(9, 14, 20, 13, "quick_gelu")),
    "hybrid-linear-only": ("ffn_dense", lambda: hybrid_case(5, 14, 0, 7, "gelu")),
    "gated": ("ffn_dense", lambda: gated_case(9, 14, 33)),
    "gated-1-neuron": ("ffn_dense", lambda: gated_case(2, 14, 1)),
}
INT8_CASES: dict[str, tuple[str, Callable[[], tuple[Any, ...]]]] = {
    "qkv-rope": ("norm_qkv_rope", lambda: quantized("norm_qkv_rope", qkv_case(11, 30, 3, 12, rope=True))),
    "qkv-one-token": ("norm_qkv_rope", lambda: quantized("norm_qkv_rope", qkv_case(1, 16, 5, 8, rope=False))),
    "linear": ("linear_residual", lambda: quantized("linear_residual", linear_case(9, 7, 22))),
    "linear-long": ("linear_residual", lambda: quantized("linear_residual", linear_case(3, 2500, 5))),
    "lowrank": ("ffn_lowrank", lambda: quantized("ffn_lowrank", lowrank_case(9, 22, 5))),
    "merged": ("ffn_lowrank", lambda: quantized("ffn_lowrank", lowrank_case(9, 22, None))),
    "quick_gelu": ("ffn_dense", lambda: quantized("ffn_dense", dense_case(9, 14, 33, "quick_gelu"))),
    "silu-1-neuron": ("ffn_dense", lambda: quantized("ffn_dense", dense_case(2, 14, 1, "silu"))),
    "hybrid": ("ffn_dense", lambda: quantized("ffn_dense", hybrid_case(9, 14, 20, 13, "gelu"))),
    "gated": ("ffn_dense", lambda: quantized("ffn_dense", gated_case(9, 14, 33))),
}


def cast(args: tuple[Any, ...], dtype: torch.dtype) -> tuple[Any, ...]:
    return tuple(a.to(dtype) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)


def outputs(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def assert_close(mine: tuple[Tensor, ...], theirs: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> None:
    """No further from the exact results than twice what PyTorch's own are in this dtype, and a rounding."""
    for ours, torch_made, truth in zip(mine, theirs, exact, strict=True):
        assert ours.dtype == torch_made.dtype
        assert ours.shape == truth.shape
        if truth.numel():
            # One rounding of the largest value; of few values PyTorch's may all be close by luck, so that it is two.
            rounding = (1 if truth.numel() > 256 else 2) * torch.finfo(ours.dtype).eps * truth.abs().max()
            assert (ours - truth).abs().max() <= 2 * (torch_made - truth).abs().max() + rounding


def _norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias


def _product(x: Tensor, weight: Tensor, scale: Tensor | None = None) -> Tensor:
    """x W^T; an int8 W is multiplied by its scales, and each row of x rounded to 127 steps either side of zero."""
    if scale is None:
        return x @ weight.T
    step = x.abs().amax(1, keepdim=True) / 127
    return (x / step).nan_to_num().round() * step @ (weight.to(x.dtype) * scale[:, None]).T


def _norm_qkv_rope(
    x: Tensor,
    nw: Tensor,
    nb: Tensor,
    eps: float,
    w: Tensor,
    b: Tensor,
    cos: Any,
    sin: Any,
    h: int,
    dim: int,
    s: Any = None,
) -> tuple[Tensor, ...]:
    q, k, v = (_product(_norm(x, nw, nb, eps), w, s) + b).view(-1, 3, h, dim).unbind(1)
    return (q, k, v) if cos is None else (_turn(q, cos, sin), _turn(k, cos, sin), v)


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Each pair (i, i + D/2) as a complex number, times e^(i angle)."""
    half = x.shape[-1] // 2
    out = torch.empty_like(x)
    for i in range(half):
        a, b, c, s = x[..., i], x[..., i + half], cos[:, i, None], sin[:, i, None]
        out[..., i], out[..., i + half] = a * c - b * s, b * c + a * s
    return out


def _attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float) -> Tensor:
    """All pairs of tokens, those of different sequences masked."""
    sequence = torch.searchsorted(cu_seqlens, torch.arange(len(q)), right=True)
    apart = (sequence[:, None] != sequence[None, :]).to(q.device)
    scores = torch.einsum("qhd,khd->hqk", q, k) * scale
    weights = scores.masked_fill(apart, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v).flatten(1)


def _ffn_lowrank(
    x: Tensor, nw: Tensor, nb: Tensor, eps: float, down: Tensor, up: Any, bias: Tensor, s1: Any = None, s2: Any = None
) -> Tensor:
    mapped = _product(_norm(x, nw, nb, eps), down, s1)
    return x + (mapped if up is None else _product(mapped, up, s2)) + bias


def _ffn_dense(
    x: Tensor,
    nw: Tensor,
    nb: Tensor,
    eps: float,
    w1: Tensor,
    b1: Tensor,
    w2: Tensor,
    b2: Tensor,
    activation: str,
    s1: Any = None,
    s2: Any = None,
    linear: int = 0,
) -> Tensor:
    first, m = _product(_norm(x, nw, nb, eps), w1, s1) + b1, w2.shape[1]
    if activation == "silu_gated":
        hidden = first[:, :m] / (1 + torch.exp(-first[:, :m])) * first[:, m:]
    else:
        hidden = torch.where(torch.arange(m, device=x.device) < m - linear, _ACTIVATIONS[activation](first), first)
    return x + _product(hidden, w2, s2) + b2


_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "quick_gelu": lambda x: x / (1 + torch.exp(-1.702 * x)),
    "gelu": lambda x: x * (1 + torch.erf(x / math.sqrt(2))) / 2,
    "gelu_pytorch_tanh": lambda x: x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "silu": lambda x: x / (1 + torch.exp(-x)),
}

DEFINITIONS: dict[str, Callable[..., Any]] = {
    "norm_qkv_rope": _norm_qkv_rope,
    "attention": _attention,
    "linear_residual": lambda x, w, b, residual, scale=None: residual + _product(x, w, scale) + b,
    "ffn_lowrank": _ffn_lowrank,
    "ffn_dense": _ffn_dense,
}
