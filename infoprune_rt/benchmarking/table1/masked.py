"""A compact tower's answer at the dense tower's cost: what pruning by masks amounts to."""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infoprune_rt.benchmarking.table1.wider import wider
from infoprune_rt.runtime.blocks import BlockSpec, CompactBlock
from infoprune_rt.runtime.encoder import CompactEncoder
from infoprune_rt.towers.base import SourceBlock, TowerAdapter, TowerShape

_LINEAR = ("lowrank", "merged")


@torch.no_grad()
def masked_tower(dense: nn.Module, compact: CompactEncoder, adapter: TowerAdapter) -> nn.Module:
    """transformers' own tower, at its own size, that computes what ``compact`` does.

    All heads are computed, and those that are gone are multiplied by zero; so are FFN neurons that are gone. A
    linear FFN is one d x d map: nothing of its rank is made use of.
    """
    assert compact.plan is not None
    masked = copy.deepcopy(dense)
    blocks = cast("list[CompactBlock]", list(compact.blocks))
    for source, block, plan in zip(adapter.blocks(masked), blocks, compact.plan.blocks, strict=True):
        _mask_heads(source, block, list(plan.heads))
        _mask_ffn(source, block)
    return masked


def masked_spec(spec: BlockSpec, shape: TowerShape) -> BlockSpec:
    """What a masked block computes of."""
    return BlockSpec(shape.num_heads, "merged" if spec.ffn in _LINEAR else "dense")


def _mask_heads(source: SourceBlock, block: CompactBlock, heads: list[int]) -> None:
    """The output projection takes nothing from heads that are gone; from the others what the compact one takes."""
    out = source.out_proj
    columns = out.weight.new_zeros(out.out_features, out.in_features // block.head_dim, block.head_dim)
    if heads:
        kept: Any = block.out
        columns[:, heads] = kept.weight.view(out.out_features, len(heads), block.head_dim)
    out.weight.copy_(columns.flatten(1))
    out.bias.copy_(block.out.bias)


def _mask_ffn(source: SourceBlock, block: CompactBlock) -> None:
    ffn: Any = block.ffn
    if block.spec.ffn in _LINEAR:
        source.ffn.forward = _LinearMap(
            ffn.map if block.spec.ffn == "merged" else ffn.up.double() @ ffn.down.double(), ffn.bias
        )
        return
    gone = source.fc1.out_features - len(ffn.fc1_bias)
    source.fc1.weight.copy_(F.pad(ffn.fc1_weight, (0, 0, 0, gone)))
    source.fc1.bias.copy_(F.pad(ffn.fc1_bias, (0, gone)))
    source.fc2.weight.copy_(F.pad(ffn.fc2_weight, (0, gone)))
    source.fc2.bias.copy_(ffn.fc2_bias)


class _LinearMap:
    """In the input's dtype; in the wider one, by which answers are judged, the product of factors is not rounded."""

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        dtypes = {bias.dtype, wider(bias.dtype)}
        self._by_dtype = {dtype: (weight.to(dtype), bias.to(dtype)) for dtype in dtypes}

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, *self._by_dtype[x.dtype])
