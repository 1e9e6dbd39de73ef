"""Costs: parameters against the modules themselves, FLOPs against PyTorch's own counter and the published figures."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from infoprune_rt.ops import plain
from infoprune_rt.plan import Quantization
from infoprune_rt.runtime.blocks import BlockSpec, CompactBlock, dense_specs
from infoprune_rt.runtime.costs import BlockCost, block_cost, tower_costs
from infoprune_rt.towers.base import TowerShape

SHAPE = TowerShape(
    num_blocks=2, width=20, num_heads=5, head_dim=4, ffn_width=33, activation="quick_gelu", norm_eps=1e-6
)
QWEN = TowerShape(
    num_blocks=32, width=1280, num_heads=16, head_dim=80, ffn_width=5120, activation="quick_gelu", norm_eps=1e-6
)
SPECS = [
    BlockSpec(5),
    BlockSpec(3, "lowrank", 7),
    BlockSpec(1, "merged"),
    BlockSpec(2, "neurons", 9),
    BlockSpec(2, "neurons", 8, "gelu"),
    BlockSpec(0, "lowrank", 1),
    BlockSpec(5, quantize="int8"),
    BlockSpec(3, "lowrank", 7, quantize="int8"),
    BlockSpec(0, "merged", quantize="int8"),
    BlockSpec(2, "neurons", 8, "gelu", quantize="int8"),
    BlockSpec(2, "hybrid", 9, linear=4),
    BlockSpec(2, "hybrid", 9, linear=4, quantize="int8"),
]


@pytest.mark.parametrize("spec", SPECS)
def test_parameters_are_the_modules(spec: BlockSpec) -> None:
    cost = block_cost(spec, SHAPE, [3])
    assert cost.parameters == sum(p.numel() for p in CompactBlock(spec, SHAPE).parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spec", SPECS)
def test_bytes_are_the_modules(spec: BlockSpec, dtype: torch.dtype) -> None:
    block = CompactBlock(spec, SHAPE).to(dtype)
    assert block_cost(spec, SHAPE, [3]).bytes(dtype.itemsize) == sum(p.nbytes for p in block.parameters())


@pytest.mark.parametrize("spec", SPECS)
def test_flops_are_what_pytorch_counts(spec: BlockSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    """The operators are opaque to the counter, so their definitions are called in their place."""
    monkeypatch.setattr("infoprune_rt.runtime.blocks._OPS", plain)
    lengths = [6, 1, 6, 11]
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    # The counter knows the attention core only as the two products that the "math" form spells out.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        CompactBlock(spec, SHAPE)(torch.randn(24, SHAPE.width), bounds, None, None)
    assert block_cost(spec, SHAPE, lengths).flops == counter.get_total_flops()


@pytest.mark.parametrize("quantize", [None, "int8"])
def test_a_gated_ffn_has_half_as_many_weights_again(
    quantize: Quantization | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infoprune_rt.runtime.blocks._OPS", plain)
    spec, shape = BlockSpec(0, quantize=quantize), replace(SHAPE, activation="silu_gated")
    block, bounds = CompactBlock(spec, shape), torch.tensor([0, 7])
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        block(torch.randn(7, SHAPE.width), bounds, None, None)
    cost = block_cost(spec, shape, [7])
    assert cost.parameters == sum(p.numel() for p in block.parameters())
    assert cost.bytes(4) == sum(p.nbytes for p in block.parameters())
    assert cost.flops == counter.get_total_flops() == 2 * 7 * 3 * SHAPE.width * SHAPE.ffn_width


def test_the_qwen2_vl_tower_costs_what_is_published() -> None:
    """method.md section 5: 1.284e9 N (of which 2.5e7 N are the ends) + 163840 N^2."""
    n = 1564
    total = sum(tower_costs(dense_specs(QWEN), QWEN, [n]), BlockCost())
    patches, merger = 2 * 1176 * 1280, 2 * (5120 * 5120 + 5120 * 3584) // 4
    assert total.linear_flops / n + patches + merger == pytest.approx(1.284e9, rel=1e-3)
    assert total.attention_flops == 163_840 * n**2
