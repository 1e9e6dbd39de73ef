"""The products and the low-rank FFN as problems."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from infoprune_kernels import roofline
from infoprune_kernels.configs import Tile
from infoprune_kernels.ffn_lowrank import launch_ffn_lowrank, launch_two_products
from infoprune_kernels.linear_residual import linear
from infoprune_kernels.norm_qkv_rope import launch_qkv_rope
from infoprune_kernels.roofline import Work
from infoprune_kernels.tune.problem import Choice, Problem, Run, random

EPS = 1e-6


def _weight(outputs: int, inputs: int, device: str, dtype: torch.dtype) -> Tensor:
    return random(device, dtype, outputs, inputs, scale=inputs**-0.5)


@dataclass(frozen=True)
class QkvRope(Problem):
    """The product behind LayerNorm, with rotation."""

    width: int
    heads: int
    head_dim: int

    @property
    def kernel(self) -> str:
        return "norm_qkv_rope"

    def sizes(self) -> dict[str, int]:
        return {"outputs": 3 * self.heads * self.head_dim, "tokens": self.tokens}

    def work(self) -> Work:
        return roofline.norm_qkv_rope(self.tokens, self.width, self.heads, self.head_dim)

    def inputs(self, device: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        columns = 3 * self.heads * self.head_dim
        angles = random(device, torch.float32, self.tokens, self.head_dim // 2, scale=math.pi).repeat(1, 2)
        weight = _weight(columns, self.width, device, dtype)
        return (
            random(device, dtype, self.tokens, self.width),
            weight,
            random(device, dtype, columns, scale=0.2),
            angles.cos(),
            angles.sin(),
        )

    def prepare(self, choice: Choice, inputs: tuple[Tensor, ...]) -> Run:
        rows, weight, bias, cos, sin = inputs
        q, k, v = (rows.new_empty(self.tokens, self.heads, self.head_dim) for _ in range(3))

        def run() -> tuple[Tensor, ...]:
            launch_qkv_rope(rows, weight, bias, cos, sin, (q, k, v), choice.some_tile)
            return q, k, v

        return run

    def definition(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        rows, weight, bias, cos, sin = inputs
        q, k, v = F.linear(rows, weight, bias).view(-1, 3, self.heads, self.head_dim).unbind(1)
        return _rotate(q, cos, sin), _rotate(k, cos, sin), v


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.to(torch.promote_types(x.dtype, cos.dtype)).chunk(2, -1)
    turned = torch.cat((-second, first), -1)
    return (torch.cat((first, second), -1) * cos[:, None] + turned * sin[:, None]).to(x.dtype)


@dataclass(frozen=True)
class Linear(Problem):
    """A product: with bias and residual, or bare, as the first of a low-rank map's two."""

    inner: int
    outer: int
    bare: bool = False

    @property
    def kernel(self) -> str:
        return "linear_residual"

    def sizes(self) -> dict[str, int]:
        return {"outputs": self.outer, "inputs": self.inner, "tokens": self.tokens}

    def work(self) -> Work:
        whole = roofline.linear_residual(self.tokens, self.inner, self.outer)
        rest = roofline.ELEMENT_BYTES * self.outer * (self.tokens + 1) if self.bare else 0
        return replace(whole, bytes=whole.bytes - rest)

    def inputs(self, device: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        product = random(device, dtype, self.tokens, self.inner), _weight(self.outer, self.inner, device, dtype)
        rest = random(device, dtype, self.outer), random(device, dtype, self.tokens, self.outer)
        return product if self.bare else product + rest

    def prepare(self, choice: Choice, inputs: tuple[Tensor, ...]) -> Run:
        rows, weight = inputs[:2]
        bias, residual = (None, None) if self.bare else inputs[2:]
        return lambda: (linear(rows, weight, bias, choice.some_tile, residual=residual),)

    def definition(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (F.linear(*inputs),) if self.bare else (F.linear(*inputs[:3]) + inputs[3],)


@dataclass(frozen=True)
class DenseFirst(Problem):
    """fc1 with its activation, quick-GELU."""

    width: int
    neurons: int

    @property
    def kernel(self) -> str:
        return "ffn_dense"

    def sizes(self) -> dict[str, int]:
        return {"neurons": self.neurons, "tokens": self.tokens}

    def work(self) -> Work:
        elements = self.tokens * (self.width + self.neurons) + self.width * self.neurons + self.neurons
        return Work(2 * self.tokens * self.width * self.neurons, roofline.ELEMENT_BYTES * elements)

    def inputs(self, device: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        weight = _weight(self.neurons, self.width, device, dtype)
        return random(device, dtype, self.tokens, self.width), weight, random(device, dtype, self.neurons)

    def prepare(self, choice: Choice, inputs: tuple[Tensor, ...]) -> Run:
        rows, weight, bias = inputs
        return lambda: (linear(rows, weight, bias, choice.some_tile, activation="quick_gelu"),)

    def definition(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden = F.linear(*inputs)
        return (hidden * torch.sigmoid(1.702 * hidden),)


@dataclass(frozen=True)
class LowRank(Problem):
    """The low-rank FFN: in one kernel or, where their tiles are given, by LayerNorm and two products."""

    width: int
    rank: int
    products: tuple[Tile, Tile] | None = None

    @property
    def kernel(self) -> str:
        return "ffn_lowrank"

    def sizes(self) -> dict[str, int]:
        return {"rank": self.rank, "tokens": self.tokens}

    def work(self) -> Work:
        return roofline.ffn_lowrank(self.tokens, self.width, self.rank)

    def inputs(self, device: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        return (
            random(device, dtype, self.tokens, self.width),
            1 + random(device, dtype, self.width, scale=0.2),
            random(device, dtype, self.width, scale=0.2),
            _weight(self.rank, self.width, device, dtype),
            _weight(self.width, self.rank, device, dtype),
            random(device, dtype, self.width),
        )

    def prepare(self, choice: Choice, inputs: tuple[Tensor, ...]) -> Run:
        x, norm_weight, norm_bias, down, up, bias = inputs
        args = (x, norm_weight, norm_bias, EPS, down, up, bias)
        tile = choice.tile
        if tile is not None:
            return lambda: (launch_ffn_lowrank(*args, tile),)
        products = self.products
        assert products is not None
        return lambda: (launch_two_products(*args, products),)

    def definition(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        x, weight, bias, down, up, up_bias = inputs
        normed = F.layer_norm(x, (self.width,), weight, bias, EPS)
        return (x + F.linear(F.linear(normed, down), up, up_bias),)

    def compiled_alike(self) -> Problem:
        return replace(self, tokens=1, products=None)
