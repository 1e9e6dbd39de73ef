"""One block of a compact tower: its spec, its parameters and the operators it calls."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

import infoprune_rt.ops  # noqa: F401  (registers torch.ops.infoprune)
from infoprune_rt.errors import InfopruneError
from infoprune_rt.ops.plain import ACTIVATIONS, GATED
from infoprune_rt.plan import KINDS, QUANTIZATIONS, FFNKind, Quantization
from infoprune_rt.towers.base import TowerShape

_OPS = torch.ops.infoprune


@dataclass(frozen=True)
class BlockSpec:
    """The sizes of one compact block; a list of them (as dicts) is the config's ``blocks``.

    num_heads: kept heads, 0 for a block without attention (only its bias stays).
    ffn: the FFN's form. size: rank k (``lowrank``), kept neurons (``neurons``), or kept neurons and the rank of the
    linear path beside them (``hybrid``), of which ``linear`` is the latter; None for ``dense`` and ``merged``.
    activation: of a ``neurons`` FFN, where it is not the tower's own.
    quantize: "int8" for weights of int8 with a scale per row; None for weights in the tower's dtype.
    """

    num_heads: int
    ffn: FFNKind = "dense"
    size: int | None = None
    activation: str | None = None
    quantize: Quantization | None = None
    linear: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """As it stands in config.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Any, *, index: int, shape: TowerShape) -> BlockSpec:
        """Read entry ``index`` of a config's ``blocks`` and check it against the dense sizes."""
        known = {field.name for field in fields(cls)}
        if not isinstance(raw, dict) or not {"num_heads", "ffn"} <= set(raw) <= known:
            raise InfopruneError(
                f'config: blocks[{index}] must be an object with "num_heads", "ffn" and "size", "activation" '
                'where it is not the tower\'s, "quantize" where weights are quantised, and "linear" of a hybrid FFN'
            )
        spec = cls(**raw)
        spec._check(index, shape)
        return spec

    def _check(self, index: int, shape: TowerShape) -> None:
        where = f"config: blocks[{index}]"
        if not _whole(self.num_heads, 0, shape.num_heads):
            raise InfopruneError(f"{where}: num_heads must be in 0..{shape.num_heads}, not {self.num_heads!r}")
        if self.ffn not in KINDS:
            raise InfopruneError(f"{where}: unknown FFN kind {self.ffn!r}; known are {', '.join(KINDS)}")
        limit = {"lowrank": shape.width, "neurons": shape.ffn_width, "hybrid": shape.ffn_width}.get(self.ffn)
        if limit is None and self.size is not None:
            raise InfopruneError(f"{where}: a {self.ffn} FFN has no size of its own, but size is {self.size!r}")
        if limit is not None and not _whole(self.size, 1, limit):
            raise InfopruneError(f"{where}: the size of a {self.ffn} FFN must be in 1..{limit}, not {self.size!r}")
        self._check_linear(where, shape)
        if self.activation is not None and (self.ffn != "neurons" or self.activation not in tuple(ACTIVATIONS)):
            raise InfopruneError(
                f"{where}: only a neurons FFN has an activation of its own, one of {', '.join(ACTIVATIONS)}, but "
                f"this {self.ffn} FFN has {self.activation!r}"
            )
        if self.quantize is not None and self.quantize not in QUANTIZATIONS:
            raise InfopruneError(
                f"{where}: unknown quantisation {self.quantize!r}; known are {', '.join(QUANTIZATIONS)}"
            )

    def _check_linear(self, where: str, shape: TowerShape) -> None:
        if self.ffn != "hybrid":
            if self.linear is not None:
                raise InfopruneError(f"{where}: only a hybrid FFN has a linear part, but this {self.ffn} FFN has one")
            return
        if shape.activation in GATED:
            raise InfopruneError(f"{where}: a tower with gated FFNs ({shape.activation}) has no hybrid ones")
        assert self.size is not None  # checked before
        limit = min(self.size, shape.width)
        if not _whole(self.linear, 1, limit):
            raise InfopruneError(
                f"{where}: the linear part of this hybrid FFN must be in 1..{limit}, not {self.linear!r}"
            )


def _whole(value: Any, low: int, high: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and low <= value <= high


def block_specs(blocks: Sequence[Any], shape: TowerShape) -> list[BlockSpec]:
    """The checked specs out of a config's ``blocks`` field."""
    if len(blocks) != shape.num_blocks:
        raise InfopruneError(f"config: blocks has {len(blocks)} entries, but the tower has {shape.num_blocks} blocks")
    return [BlockSpec.from_dict(raw, index=i, shape=shape) for i, raw in enumerate(blocks)]


def dense_specs(shape: TowerShape) -> list[BlockSpec]:
    """The specs of a tower from which nothing was removed."""
    return [BlockSpec(shape.num_heads)] * shape.num_blocks


def apply_linear(layer: nn.Linear, x: Tensor, activation: str = "none") -> Tensor:
    """activation(layer(x)) on PyTorch's operators, in x's dtype, as the blocks compute; "none" is the layer alone."""
    with torch.autocast(x.device.type, enabled=False):
        out: Tensor = layer(x)
        return out if activation == "none" else ACTIVATIONS[activation](out)


class _BiasOnly(nn.Module):
    """What is left of an output projection without heads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(width))


class Projection(nn.Linear):
    """A linear layer's parameters, which operators take; ``weight_scale`` is None unless the weight is int8."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs)
        self.register_parameter("weight_scale", None)


class DenseFFN(nn.Module):
    """fc2 act(fc1 .) with ``hidden`` values: all neurons, those that were kept, or ``act`` between two factors.

    The last ``linear`` values have no activation: beside kept neurons, two factors of a linear map. A gated ``act``
    takes twice as many rows of fc1.
    """

    def __init__(self, width: int, hidden: int, activation: str, linear: int = 0) -> None:
        super().__init__()
        self.activation, self.linear = activation, linear
        rows = 2 * hidden if activation in GATED else hidden
        self.fc1_weight = nn.Parameter(torch.empty(rows, width))
        self.fc1_bias = nn.Parameter(torch.zeros(rows))
        self.fc2_weight = nn.Parameter(torch.empty(width, hidden))
        self.fc2_bias = nn.Parameter(torch.zeros(width))
        self.register_parameter("fc1_weight_scale", None)
        self.register_parameter("fc2_weight_scale", None)

    def forward(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """x + FFN(norm(x)), T x d."""
        out: Tensor = _OPS.ffn_dense(
            x,
            norm.weight,
            norm.bias,
            norm.eps,
            self.fc1_weight,
            self.fc1_bias,
            self.fc2_weight,
            self.fc2_bias,
            self.activation,
            self.fc1_weight_scale,
            self.fc2_weight_scale,
            self.linear,
        )
        return out


class LowRankFFN(nn.Module):
    """The linear map up . down of rank ``rank``, and a bias."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.down = nn.Parameter(torch.empty(rank, width))
        self.up = nn.Parameter(torch.empty(width, rank))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_parameter("down_scale", None)
        self.register_parameter("up_scale", None)

    def forward(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """x + FFN(norm(x)), T x d."""
        out: Tensor = _OPS.ffn_lowrank(
            x, norm.weight, norm.bias, norm.eps, self.down, self.up, self.bias, self.down_scale, self.up_scale
        )
        return out


class MergedFFN(nn.Module):
    """One d x d map and a bias: cheaper than two factors whose rank exceeds d / 2."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Parameter(torch.empty(width, width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.register_parameter("map_scale", None)

    def forward(self, x: Tensor, norm: nn.LayerNorm) -> Tensor:
        """x + FFN(norm(x)), T x d."""
        out: Tensor = _OPS.ffn_lowrank(x, norm.weight, norm.bias, norm.eps, self.map, None, self.bias, self.map_scale)
        return out


def _ffn(spec: BlockSpec, shape: TowerShape) -> nn.Module:
    if spec.ffn == "lowrank":
        assert spec.size is not None
        return LowRankFFN(shape.width, spec.size)
    if spec.ffn == "merged":
        return MergedFFN(shape.width)
    hidden = shape.ffn_width if spec.size is None else spec.size
    return DenseFFN(shape.width, hidden, spec.activation or shape.activation, spec.linear or 0)


def _to_int8(block: nn.Module) -> None:
    """Room for int8 weights in the place of float ones, each with a scale per row; they take no gradient."""
    for module in block.modules():
        for name, weight in list(module.named_parameters(recurse=False)):
            if weight.ndim == 2:
                codes = torch.zeros_like(weight, dtype=torch.int8)
                module.register_parameter(name, nn.Parameter(codes, requires_grad=False))
                scale = nn.Parameter(weight.new_ones(len(weight)), requires_grad=False)
                module.register_parameter(f"{name}_scale", scale)


class CompactBlock(nn.Module):
    """One block with its own head count and FFN form.

    Parameters: ``norm1``, ``qkv`` (3 x h x D rows: q, k, v), ``out`` (d x h*D), ``norm2``, ``ffn``;
    without heads only ``out.bias`` is left of the attention. Where the spec quantises, every weight is int8
    and has its ``<name>_scale`` (a number per row) beside it.
    """

    def __init__(self, spec: BlockSpec, shape: TowerShape) -> None:
        super().__init__()
        self.spec = spec
        self.head_dim = shape.head_dim
        inner = spec.num_heads * shape.head_dim
        self.out: Projection | _BiasOnly
        if spec.num_heads:
            self.norm1 = nn.LayerNorm(shape.width, eps=shape.norm_eps)
            self.qkv = Projection(shape.width, 3 * inner)
            self.out = Projection(inner, shape.width)
        else:
            self.out = _BiasOnly(shape.width)
        self.norm2 = nn.LayerNorm(shape.width, eps=shape.norm_eps)
        self.ffn = _ffn(spec, shape)
        if spec.quantize:
            _to_int8(self)

    def _attend(self, x: Tensor, cu_seqlens: Tensor, cos: Tensor | None, sin: Tensor | None) -> Tensor:
        norm, qkv, rotary = self.norm1, self.qkv, (cos, sin)
        sizes = (self.spec.num_heads, self.head_dim)
        q, k, v = _OPS.norm_qkv_rope(
            x, norm.weight, norm.bias, norm.eps, qkv.weight, qkv.bias, *rotary, *sizes, qkv.weight_scale
        )
        z = _OPS.attention(q, k, v, cu_seqlens, self.head_dim**-0.5)
        out: Tensor = _OPS.linear_residual(z, self.out.weight, self.out.bias, x, self.out.weight_scale)
        return out

    def forward(self, x: Tensor, cu_seqlens: Tensor, cos: Tensor | None, sin: Tensor | None) -> Tensor:
        """x: T x d; cu_seqlens: S + 1 bounds (int64, on the host); cos, sin: T x D float32 or None."""
        x = self._attend(x, cu_seqlens, cos, sin) if self.spec.num_heads else x + self.out.bias
        out: Tensor = self.ffn(x, self.norm2)
        return out


class BlockStack(nn.ModuleList):
    """All blocks in a row: tensors in, tensor out, so that it can be compiled and exported whole."""

    def __init__(self, specs: Sequence[BlockSpec], shape: TowerShape) -> None:
        super().__init__(CompactBlock(spec, shape) for spec in specs)

    def forward(self, x: Tensor, cu_seqlens: Tensor, cos: Tensor | None = None, sin: Tensor | None = None) -> Tensor:
        """Arguments as a block's; T may differ from call to call."""
        for block in self:
            x = block(x, cu_seqlens, cos, sin)
        return x
