"""Values, gradients and refusals of the five operators."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from operator_cases import (
    CASES,
    DEFINITIONS,
    INT8_CASES,
    OPS,
    attention_case,
    cast,
    dense_case,
    gated_case,
    hybrid_case,
    int8,
    int8_tolerances,
    linear_case,
    lowrank_case,
    norm_args,
    outputs,
    qkv_case,
    quantized,
    rand,
)
from torch import Tensor
from torch.library import opcheck

from infoprune_rt.errors import InfopruneError
from infoprune_rt.ops.checks import CHECKS
from infoprune_rt.ops.plain import ACTIVATIONS, int8_linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", CASES)
def test_equals_its_definition(case: str, dtype: torch.dtype) -> None:
    """No further from the fp64 definition than twice what the same definition costs in this dtype."""
    name, make = CASES[case]
    args = cast(make(), dtype)
    exact = outputs(DEFINITIONS[name](*cast(args, torch.float64)))
    naive = outputs(DEFINITIONS[name](*args))
    got = outputs(getattr(OPS, name)(*args))
    for mine, theirs, truth in zip(got, naive, exact, strict=True):
        assert mine.dtype == dtype
        assert mine.shape == truth.shape
        rounding = torch.finfo(dtype).eps * truth.abs().max()
        assert (mine - truth).abs().max() <= 2 * (theirs - truth).abs().max() + rounding


@pytest.mark.parametrize("case", INT8_CASES)
def test_int8_equals_its_definition(case: str) -> None:
    name, make = INT8_CASES[case]
    args = make()
    got, exact = outputs(getattr(OPS, name)(*args)), outputs(DEFINITIONS[name](*args))
    assert all(torch.allclose(a, b, rtol=0, atol=1e-12) for a, b in zip(got, exact, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", INT8_CASES)
def test_int8_in_other_dtypes(case: str, dtype: torch.dtype) -> None:
    name, make = INT8_CASES[case]
    args = cast(make(), dtype)
    got, exact = outputs(getattr(OPS, name)(*args)), outputs(DEFINITIONS[name](*cast(args, torch.float64)))
    for mine, truth, allowed in zip(got, exact, int8_tolerances(name, args), strict=True):
        assert mine.dtype == dtype
        assert mine.shape == truth.shape
        assert (mine - truth).abs().max() <= allowed


@given(tokens=st.integers(0, 5), n=st.integers(1, 2300), d=st.integers(1, 9), exponent=st.integers(-30, 30))
@settings(max_examples=40, deadline=None)
def test_quantising_activations_costs_half_a_step_each(tokens: int, n: int, d: int, exponent: int) -> None:
    x, (weight, scale) = rand(tokens, n, scale=2.0**exponent), int8(rand(d, n))
    wide = weight.double() * scale[:, None]
    error = (int8_linear(x, weight, scale, None) - x @ wide.T).abs()
    half_steps = x.abs().amax(1, keepdim=True) / 254
    assert (error <= half_steps * wide.abs().sum(1) * (1 + 1e-9)).all()


@given(power=st.integers(-100, 90))
@settings(max_examples=30, deadline=None)
def test_a_row_scaled_by_a_power_of_two_gives_the_same_scaled(power: int) -> None:
    x, (weight, scale) = rand(3, 20).float(), int8(rand(4, 20))
    once = int8_linear(x, weight, scale.float(), None)
    factor = torch.tensor([[1.0], [2.0**power], [1.0]])
    assert torch.equal(int8_linear(x * factor, weight, scale.float(), None), once * factor)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_row_without_numbers_gives_nan_and_touches_no_other(value: float) -> None:
    x, (weight, scale), bias = rand(3, 20).float(), int8(rand(4, 20)), rand(4).float()
    expected = int8_linear(x, weight, scale.float(), bias)
    x[1, 7] = value
    got = int8_linear(x, weight, scale.float(), bias)
    assert got[1].isnan().all()
    assert torch.equal(got[::2], expected[::2])


@pytest.mark.parametrize("magnitude", [0.0, 1e-45, 1e-38, 3e-37])
def test_rows_of_nothing_give_the_bias(magnitude: float) -> None:
    (weight, scale), bias = int8(rand(4, 20)), rand(4).float()
    assert torch.equal(int8_linear(torch.full((1, 20), magnitude), weight, scale.float(), bias), bias[None])


@given(n=st.integers(2, 4000), sign=st.sampled_from([1, -1]))
@settings(max_examples=20, deadline=None)
def test_the_largest_sums_are_exact(n: int, sign: int) -> None:
    codes = torch.full((1, n), 127.0)
    codes[0, 0] = sign
    weight = torch.full((2, n), 127, dtype=torch.int8)
    out = int8_linear(codes.double(), weight, torch.ones(2, dtype=torch.float64), None)
    assert out.tolist() == [[127.0 * 127 * (n - 1) + sign * 127] * 2]


@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any))
@settings(max_examples=30, deadline=None)
def test_attention_of_any_pack(lengths: list[int]) -> None:
    args = attention_case(lengths, 2, 6)
    assert torch.allclose(OPS.attention(*args), DEFINITIONS["attention"](*args), atol=1e-12)


@given(neurons=st.integers(0, 9), linear=st.integers(1, 9), activation=st.sampled_from(sorted(ACTIVATIONS)))
@settings(max_examples=30, deadline=None)
def test_a_hybrid_ffn_is_its_neurons_and_a_low_rank_path(neurons: int, linear: int, activation: str) -> None:
    """Both on the same norm, and their sum: (x + N) + (x + L) - x."""
    args = hybrid_case(5, 12, neurons, linear, activation)
    x, *norm, w1, b1, w2, b2, _, _, _, _ = args
    alone = OPS.ffn_dense(x, *norm, w1[:neurons], b1[:neurons], w2[:, :neurons], b2, activation)
    path = OPS.ffn_lowrank(x, *norm, w1[neurons:], w2[:, neurons:], w2[:, neurons:] @ b1[neurons:])
    assert torch.allclose(OPS.ffn_dense(*args), alone + path - x, rtol=0, atol=1e-12)


def test_a_gated_ffn_is_qwen2_5_vls_mlp() -> None:
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLMLP

    mlp = Qwen2_5_VLMLP(Qwen2_5_VLVisionConfig(hidden_size=12, intermediate_size=35), bias=True).double()
    x, norm = rand(7, 12), norm_args(12)
    first = [torch.cat((getattr(mlp.gate_proj, name), getattr(mlp.up_proj, name))) for name in ("weight", "bias")]
    made = OPS.ffn_dense(x, *norm, *first, mlp.down_proj.weight, mlp.down_proj.bias, "silu_gated")
    assert torch.allclose(made, x + mlp(torch.nn.functional.layer_norm(x, (12,), *norm)), rtol=0, atol=1e-12)


def test_nothing_packed_is_nothing() -> None:
    empty = torch.empty(0, 3, 8)
    assert OPS.attention(empty, empty, empty, torch.tensor([0, 0]), 0.3).shape == (0, 24)


@pytest.mark.parametrize("case", CASES)
def test_gradients(case: str) -> None:
    name, make = CASES[case]
    args = [a.requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a for a in make()]
    if case == "qkv-rope":
        args[6], args[7] = args[6].detach(), args[7].detach()  # tables are constants in a tower
    assert torch.autograd.gradcheck(getattr(OPS, name), args, fast_mode=True)


@pytest.mark.parametrize("case", INT8_CASES)
def test_int8_has_no_gradient(case: str) -> None:
    name, make = INT8_CASES[case]
    first, *rest = make()
    out = outputs(getattr(OPS, name)(first.requires_grad_(), *rest))[0]
    with pytest.raises(InfopruneError, match=f"infoprune::{name} has no gradient with int8 weights; train the tower"):
        out.sum().backward()


def test_gradients_reach_only_what_asks_for_them() -> None:
    x, weight, bias, residual = linear_case(4, 5, 6)
    weight.requires_grad_()
    out = OPS.linear_residual(x, weight, bias, residual)
    out.square().sum().backward()
    assert weight.grad is not None
    assert torch.allclose(weight.grad, 2 * out.detach().T @ x)
    assert x.grad is None


@pytest.mark.parametrize("case", CASES)
def test_opcheck(case: str) -> None:
    name, make = CASES[case]
    args = tuple(
        a.requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() else a
        for a in cast(make(), torch.float32)
    )
    opcheck(getattr(OPS, name).default, args)


@pytest.mark.parametrize("case", INT8_CASES)
def test_opcheck_int8(case: str) -> None:
    name, make = INT8_CASES[case]
    opcheck(getattr(OPS, name).default, cast(make(), torch.float32))


@pytest.mark.parametrize("case", CASES)
def test_autocast_changes_nothing(case: str) -> None:
    name, make = CASES[case]
    args = cast(make(), torch.float32)
    expected = outputs(getattr(OPS, name)(*args))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = outputs(getattr(OPS, name)(*args))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


def replaced(args: tuple[Any, ...], place: int, value: Any) -> tuple[Any, ...]:
    return (*args[:place], value, *args[place + 1 :])


QKV, ATTENTION, LINEAR = qkv_case(5, 12, 2, 4, rope=True), attention_case([2, 3], 2, 4), linear_case(4, 5, 6)
LOWRANK, DENSE, GATED = lowrank_case(4, 6, 3), dense_case(4, 6, 9, "gelu"), gated_case(4, 6, 5)
MERGED = quantized("ffn_lowrank", lowrank_case(4, 6, None))[:-1]
BAD: list[tuple[str, tuple[Any, ...], str]] = [
    ("norm_qkv_rope", replaced(QKV, 0, rand(5, 4, 12)), "x must have shape (any, any), not (5, 4, 12)"),
    ("norm_qkv_rope", replaced(QKV, 0, rand(5, 12).long()), "must be a floating-point tensor, not torch.int64"),
    ("norm_qkv_rope", replaced(QKV, 1, rand(11)), "norm_weight must have shape (12), not (11)"),
    ("norm_qkv_rope", replaced(QKV, 4, rand(24, 13)), "weight must have shape (24, 12), not (24, 13)"),
    ("norm_qkv_rope", replaced(QKV, 4, rand(24, 12).float()), "weight is torch.float32 on cpu"),
    ("norm_qkv_rope", replaced(QKV, 7, None), "cos and sin go together"),
    ("norm_qkv_rope", replaced(QKV, 6, rand(4, 4)), "cos must have shape (5, 4), not (4, 4)"),
    ("norm_qkv_rope", replaced(QKV, 6, rand(5, 4).long()), "cos must be float32 on cpu, not torch.int64"),
    ("norm_qkv_rope", replaced(QKV, 8, 0), "num_heads and head_dim must be positive, not 0 and 4"),
    (
        "norm_qkv_rope",
        (*qkv_case(3, 12, 2, 5, rope=False)[:6], rand(3, 5), rand(3, 5), 2, 5),
        "an even head_dim, not 5",
    ),
    ("attention", replaced(ATTENTION, 1, rand(5, 2, 3)), "k must have shape (5, 2, 4), not (5, 2, 3)"),
    (
        "attention",
        replaced(ATTENTION, 3, torch.tensor([0, 2, 6])),
        "from 0 to the number of rows (5), but it is [0, 2, 6]",
    ),
    ("attention", replaced(ATTENTION, 3, torch.tensor([0, 6, 5])), "but it is [0, 6, 5]"),
    ("attention", replaced(ATTENTION, 3, torch.tensor([5])), "but it is [5]"),
    (
        "attention",
        replaced(ATTENTION, 3, torch.tensor([0, 5], dtype=torch.int32)),
        "must be a one-dimensional int64 tensor",
    ),
    ("linear_residual", replaced(LINEAR, 1, rand(6, 4)), "weight must have shape (any, 5), not (6, 4)"),
    ("linear_residual", replaced(LINEAR, 3, rand(3, 6)), "residual must have shape (4, 6), not (3, 6)"),
    ("ffn_lowrank", replaced(LOWRANK, 5, rand(6, 4)), "up must have shape (6, 3), not (6, 4)"),
    ("ffn_lowrank", replaced(LOWRANK, 5, None), "down must have shape (6, 6), not (3, 6)"),
    ("ffn_dense", replaced(DENSE, 6, rand(6, 8)), "fc2_weight must have shape (6, 9), not (6, 8)"),
    (
        "linear_residual",
        (*LINEAR, rand(6)),
        "int8 exactly where its scale is given, but weight is torch.float64 and weight_scale is there",
    ),
    ("linear_residual", quantized("linear_residual", LINEAR)[:-1], "weight is torch.int8 and weight_scale is missing"),
    (
        "linear_residual",
        replaced(quantized("linear_residual", LINEAR), 4, rand(5)),
        "weight_scale must have shape (6), not (5)",
    ),
    (
        "norm_qkv_rope",
        replaced(quantized("norm_qkv_rope", QKV), 10, rand(24).float()),
        "weight_scale is torch.float32 on cpu, but the input is torch.float64",
    ),
    ("ffn_lowrank", replaced(quantized("ffn_lowrank", LOWRANK), 8, None), "up is torch.int8 and up_scale is missing"),
    ("ffn_lowrank", (*MERGED, rand(6)), "up_scale is there, but up is missing"),
    ("ffn_dense", (*DENSE, None, rand(6)), "fc2_weight is torch.float64 and fc2_scale is there"),
    ("ffn_dense", replaced(DENSE, 8, "relu6"), "unknown activation 'relu6'; known are gelu, gelu_pytorch_tanh"),
    ("ffn_dense", (*DENSE, None, None, 10), "linear must be a number of hidden values in 0..9, not 10"),
    ("ffn_dense", (*DENSE, None, None, -1), "linear must be a number of hidden values in 0..9, not -1"),
    ("ffn_dense", replaced(DENSE, 8, "silu_gated"), "a gated FFN's fc1_weight must have an even number of rows, not 9"),
    ("ffn_dense", replaced(GATED, 6, rand(6, 10)), "fc2_weight must have shape (6, 5), not (6, 10)"),
    ("ffn_dense", (*GATED, None, None, 2), "a gated FFN has no linear hidden values, but linear is 2"),
]


@pytest.mark.parametrize(("name", "args", "told"), BAD)
def test_malformed_input_is_told(name: str, args: tuple[Any, ...], told: str) -> None:
    with pytest.raises(InfopruneError, match=re.escape(told)) as caught:
        getattr(OPS, name)(*args)
    assert str(caught.value).startswith(f"infoprune::{name}: ")


def test_tables_on_another_device_are_told() -> None:
    """By the check itself: tensors of "meta" would not come to a kernel."""
    told = "sin must be float32 on cpu, not torch.float64 on meta"
    with pytest.raises(InfopruneError, match=told):
        CHECKS["norm_qkv_rope"](*replaced(QKV, 7, rand(5, 4).to("meta")))
