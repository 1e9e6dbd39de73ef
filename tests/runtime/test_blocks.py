"""Blocks of every kind: wiring, gradients, compilation and export with any number of tokens."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from infoprune_rt.errors import InfopruneError
from infoprune_rt.ops import plain
from infoprune_rt.runtime.blocks import BlockSpec, BlockStack, CompactBlock, block_specs
from infoprune_rt.towers.base import TowerShape

SHAPE = TowerShape(num_blocks=7, width=28, num_heads=7, head_dim=4, ffn_width=45, activation="gelu", norm_eps=1e-5)
SPECS = [
    BlockSpec(7),
    BlockSpec(3, "lowrank", 5),
    BlockSpec(0, "merged"),
    BlockSpec(1, "neurons", 1),
    BlockSpec(5, "lowrank", 28),
    BlockSpec(2, "neurons", 6, "silu"),
    BlockSpec(4, "hybrid", 11, linear=5),
]


INT8_SPECS = [replace(spec, quantize="int8") for spec in SPECS]


def random_(module: torch.nn.Module) -> Any:
    for name, parameter in module.named_parameters():
        if parameter.dtype == torch.int8:
            parameter.random_(-127, 128)
        elif name.endswith("_scale"):
            torch.nn.init.uniform_(parameter, 0.001, 0.004)
        else:
            torch.nn.init.normal_(parameter, std=0.2)
    return module


def pack(lengths: list[int], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tokens = sum(lengths)
    angles = torch.randn(tokens, SHAPE.head_dim // 2).repeat(1, 2)
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    return torch.randn(tokens, SHAPE.width, dtype=dtype), bounds, angles.cos(), angles.sin()


def one_sequence(block: CompactBlock, x: Tensor) -> Tensor:
    """The block's definition for one image without rotary positions, head by head."""
    weights = block.state_dict()
    attended = x + weights["out.bias"]
    if block.spec.num_heads:
        normed = F.layer_norm(x, (28,), weights["norm1.weight"], weights["norm1.bias"], 1e-5)
        q, k, v = (normed @ weights["qkv.weight"].T + weights["qkv.bias"]).chunk(3, dim=1)
        for head in range(block.spec.num_heads):
            columns = slice(4 * head, 4 * head + 4)
            mixed = (q[:, columns] @ k[:, columns].T / 2).softmax(1) @ v[:, columns]
            attended = attended + mixed @ weights["out.weight"][:, columns].T
    normed = F.layer_norm(attended, (28,), weights["norm2.weight"], weights["norm2.bias"], 1e-5)
    if block.spec.ffn == "lowrank":
        return attended + normed @ (weights["ffn.up"] @ weights["ffn.down"]).T + weights["ffn.bias"]
    if block.spec.ffn == "merged":
        return attended + normed @ weights["ffn.map"].T + weights["ffn.bias"]
    activation = F.silu if block.spec.activation == "silu" else F.gelu
    hidden = normed @ weights["ffn.fc1_weight"].T + weights["ffn.fc1_bias"]
    neurons = hidden.shape[1] - (block.spec.linear or 0)
    hidden = torch.cat((activation(hidden[:, :neurons]), hidden[:, neurons:]), dim=1)
    return attended + hidden @ weights["ffn.fc2_weight"].T + weights["ffn.fc2_bias"]


@pytest.mark.parametrize("spec", SPECS)
def test_a_block_is_its_definition(spec: BlockSpec) -> None:
    block = random_(CompactBlock(spec, SHAPE).double())
    x, bounds, _, _ = pack([1, 6, 4])
    expected = torch.cat([one_sequence(block, part) for part in x.split([1, 6, 4])])
    assert torch.allclose(block(x, bounds, None, None), expected, atol=1e-12)


def dequantised(block: CompactBlock) -> CompactBlock:
    """The float block that an int8 block stands for."""
    state = block.state_dict()
    for name in [name for name in state if name.endswith("_scale")]:
        scale = state.pop(name)
        state[name.removesuffix("_scale")] = state[name.removesuffix("_scale")] * scale[:, None]
    plain = CompactBlock(replace(block.spec, quantize=None), SHAPE).double()
    plain.load_state_dict(state)
    return plain


@pytest.mark.parametrize("spec", INT8_SPECS)
def test_an_int8_block_is_its_float_block_but_for_rounded_activations(spec: BlockSpec) -> None:
    block = random_(CompactBlock(spec, SHAPE).double())
    assert {name for name, p in block.named_parameters() if p.ndim == 2} == {
        name for name, p in block.named_parameters() if p.dtype == torch.int8
    }
    x, bounds, cos, sin = pack([1, 6, 4])
    got, expected = block(x, bounds, cos, sin), dequantised(block)(x, bounds, cos, sin)
    error = (got - expected).square().mean().sqrt() / (expected - x).square().mean().sqrt()
    assert 1e-4 < error < 0.03


def test_an_int8_block_runs_under_grad_but_has_none() -> None:
    block = random_(CompactBlock(INT8_SPECS[1], SHAPE))
    out = block(*pack([3, 2], torch.float32))
    with pytest.raises(InfopruneError, match="has no gradient with int8 weights; train the tower first"):
        out.sum().backward()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_conversions_leave_int8_weights(dtype: torch.dtype) -> None:
    block = random_(CompactBlock(INT8_SPECS[3], SHAPE))
    before = {name: p.clone() for name, p in block.named_parameters() if p.dtype == torch.int8}
    assert {p.dtype for p in block.to(dtype).parameters()} == {torch.int8, dtype}
    assert all(torch.equal(block.get_parameter(name), codes) for name, codes in before.items())


def test_a_block_without_heads_keeps_only_its_bias() -> None:
    names = set(CompactBlock(BlockSpec(0, "merged"), SHAPE).state_dict())
    assert names == {"out.bias", "norm2.weight", "norm2.bias", "ffn.map", "ffn.bias"}


def test_gradients_are_those_of_the_plain_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    stack = random_(BlockStack(SPECS, SHAPE).double())
    inputs = pack([2, 7])
    stack(*inputs).square().sum().backward()
    found = {name: parameter.grad for name, parameter in stack.named_parameters()}
    stack.zero_grad()
    monkeypatch.setattr("infoprune_rt.runtime.blocks._OPS", plain)
    stack(*inputs).square().sum().backward()
    for name, parameter in stack.named_parameters():
        assert torch.allclose(found[name], parameter.grad, rtol=1e-10), name


@pytest.mark.parametrize("specs", [SPECS, INT8_SPECS])
def test_compiles_as_one_graph_for_any_number_of_tokens(specs: list[BlockSpec]) -> None:
    stack = random_(BlockStack(specs, SHAPE))
    compiled = torch.compile(stack, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch.no_grad():
        for lengths in ([3, 4], [5, 1, 6]):
            inputs = pack(lengths, torch.float32)
            assert torch.equal(compiled(*inputs), stack(*inputs))


@pytest.mark.parametrize("specs", [SPECS, INT8_SPECS])
def test_exports_with_a_dynamic_number_of_tokens(specs: list[BlockSpec]) -> None:
    stack = random_(BlockStack(specs, SHAPE)).eval()
    tokens, bounds = torch.export.Dim("tokens", min=2), torch.export.Dim("bounds", min=2)
    dynamic = {"x": {0: tokens}, "cu_seqlens": {0: bounds}, "cos": {0: tokens}, "sin": {0: tokens}}
    with torch.no_grad():
        exported = torch.export.export(stack, pack([3, 4], torch.float32), dynamic_shapes=dynamic).module()
        inputs = pack([9, 1, 5], torch.float32)
        assert torch.equal(exported(*inputs), stack(*inputs))


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ({"num_heads": 8, "ffn": "dense"}, "num_heads must be in 0..7, not 8"),
        ({"num_heads": True, "ffn": "dense"}, "num_heads must be in 0..7, not True"),
        ({"num_heads": 2, "ffn": "sparse"}, "unknown FFN kind 'sparse'"),
        ({"num_heads": 2, "ffn": "lowrank"}, "size of a lowrank FFN must be in 1..28, not None"),
        ({"num_heads": 2, "ffn": "lowrank", "size": 29}, "must be in 1..28, not 29"),
        ({"num_heads": 2, "ffn": "neurons", "size": 46}, "must be in 1..45, not 46"),
        ({"num_heads": 2, "ffn": "merged", "size": 3}, "a merged FFN has no size of its own, but size is 3"),
        ({"num_heads": 2}, 'must be an object with "num_heads", "ffn" and "size"'),
        ({"num_heads": 2, "ffn": "dense", "rank": 3}, 'must be an object with "num_heads", "ffn" and "size"'),
        ({"num_heads": 2, "ffn": "neurons", "size": 3, "activation": "relu"}, "this neurons FFN has 'relu'"),
        ({"num_heads": 2, "ffn": "neurons", "size": 3, "activation": ["gelu"]}, "this neurons FFN has ['gelu']"),
        ({"num_heads": 2, "ffn": "dense", "activation": "gelu"}, "only a neurons FFN has an activation of its own"),
        ({"num_heads": 2, "ffn": "dense", "quantize": "int4"}, "unknown quantisation 'int4'; known are int8"),
        ({"num_heads": 2, "ffn": "dense", "quantize": ["int8"]}, "unknown quantisation ['int8']"),
        ({"num_heads": 2, "ffn": "hybrid", "linear": 3}, "size of a hybrid FFN must be in 1..45, not None"),
        ({"num_heads": 2, "ffn": "hybrid", "size": 46, "linear": 3}, "must be in 1..45, not 46"),
        ({"num_heads": 2, "ffn": "hybrid", "size": 9}, "the linear part of this hybrid FFN must be in 1..9, not None"),
        ({"num_heads": 2, "ffn": "hybrid", "size": 9, "linear": 10}, "must be in 1..9, not 10"),
        ({"num_heads": 2, "ffn": "hybrid", "size": 40, "linear": 29}, "must be in 1..28, not 29"),
        ({"num_heads": 2, "ffn": "hybrid", "size": 9, "linear": True}, "must be in 1..9, not True"),
        ({"num_heads": 2, "ffn": "neurons", "size": 9, "linear": 4}, "only a hybrid FFN has a linear part"),
        ({"num_heads": 2, "ffn": "hybrid", "size": 9, "linear": 4, "activation": "silu"}, "this hybrid FFN has 'silu'"),
        ([2, "dense"], 'must be an object with "num_heads", "ffn" and "size"'),
    ],
)
def test_wrong_specs_are_told_with_their_block(entry: Any, told: str) -> None:
    good = {"num_heads": 7, "ffn": "dense", "size": None}
    with pytest.raises(InfopruneError, match=re.escape("config: blocks[1]")) as caught:
        block_specs([good, entry, good, good, good, good, good], SHAPE)
    assert told in str(caught.value)
