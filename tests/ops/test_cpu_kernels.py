"""The C++ kernels, on every instruction set of this machine, against the operators' definitions in float64."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
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
    int8_tolerances,
    linear_case,
    lowrank_case,
    outputs,
    qkv_case,
    quantized,
    split,
)
from torch import Tensor

from infoprune_rt.errors import InfopruneError
from infoprune_rt.ops.cpu_library import isa, load_library
from infoprune_rt.ops.plain import ACTIVATIONS
from infoprune_rt.runtime.cpu_engine import beside_each_other

load_library()
CPU = torch.ops.infoprune_cpu
SETS = [isa()] if os.environ.get("INFOPRUNE_CPU_ISA") else CPU.instruction_sets().split(",")
DTYPES = (torch.float32, torch.bfloat16)

TOWER_CASES: dict[str, tuple[str, Callable[[], tuple[Any, ...]]]] = CASES | {
    f"qkv-{dim}": ("norm_qkv_rope", lambda dim=dim: qkv_case(61, 96, 3, dim, rope=True))
    for dim in (32, 64, 72, 80, 88, 96, 128)
}
TOWER_CASES |= {
    f"attention-{dim}": ("attention", lambda dim=dim: attention_case([130, 1, 0, 259], 3, dim))
    for dim in (32, 64, 72, 80, 88, 96, 128)
}
TOWER_CASES |= {
    "qkv-7b": ("norm_qkv_rope", lambda: qkv_case(67, 1280, 5, 80, rope=True)),
    "linear-7b": ("linear_residual", lambda: linear_case(67, 400, 1280)),
    "lowrank-7b": ("ffn_lowrank", lambda: lowrank_case(67, 1280, 128)),
    "merged-7b": ("ffn_lowrank", lambda: lowrank_case(67, 1280, None)),
    "dense-7b": ("ffn_dense", lambda: dense_case(67, 1280, 5120, "quick_gelu")),
    "hybrid-7b": ("ffn_dense", lambda: hybrid_case(67, 1280, 640, 640, "quick_gelu")),
    "gated-7b": ("ffn_dense", lambda: gated_case(67, 1280, 3420)),
}


def poisoned(x: Tensor, *sizes: int) -> Tensor:
    return torch.full(sizes, torch.nan, dtype=x.dtype)


def pack(weight: Tensor, scale: Tensor | None, isa: str, parts: int = 1) -> Tensor:
    packed: Tensor
    packed = CPU.pack(weight, parts, isa) if scale is None else CPU.pack_int8(weight, scale.float(), parts, isa)
    return packed


def run(name: str, args: tuple[Any, ...], isa: str) -> tuple[Tensor, ...]:
    """The C++ kernel on the plain operator's arguments."""
    if name == "attention":
        q, k, v, bounds, scale = args
        out = q.clone()
        CPU.attention_(out, k, v, bounds, scale, isa)
        return (out.flatten(1),)
    args, scales, behind = split(name, args)
    int8 = scales[0] is not None
    if name == "norm_qkv_rope":
        x, nw, nb, eps, weight, bias, cos, sin, heads, dim = args
        if cos is not None:
            cos, sin = cos.float(), sin.float()
        q, k, v = (poisoned(x, len(x), heads, dim) for _ in range(3))
        packed = pack(weight, scales[0], isa, 3 * heads)
        CPU.norm_qkv_rope_(x, nw, nb, eps, packed, bias, cos, sin, q, k, v, int8, isa)
        return q, k, v
    if name == "linear_residual":
        x, weight, bias, residual = args
        out = residual.clone()
        CPU.linear_residual_(x, pack(weight, scales[0], isa), bias, out, int8, isa)
        return (out,)
    out = args[0].clone()
    norm = args[1:4]
    if name == "ffn_lowrank":
        down, up, bias = args[4:]
        first = pack(down, scales[0], isa)
        if up is None:
            CPU.ffn_(out, *norm, first, bias, len(down), None, None, "none", 0, int8, isa)
        else:
            CPU.ffn_(out, *norm, first, None, len(down), pack(up, scales[1], isa), bias, "none", 0, int8, isa)
        return (out,)
    w1, b1, w2, b2, activation = args[4:]
    if activation == "silu_gated":
        w1, b1, scales = beside_each_other(w1), beside_each_other(b1), (gated_scale(scales[0]), scales[1])
    first, second = pack(w1, scales[0], isa), pack(w2, scales[1], isa)
    CPU.ffn_(out, *norm, first, b1, w2.shape[1], second, b2, activation, *(behind or (0,)), int8, isa)
    return (out,)


def gated_scale(scale: Tensor | None) -> Tensor | None:
    return None if scale is None else beside_each_other(scale)


def errors(found: Any, exact: Any) -> list[Tensor]:
    """Largest difference of each output."""
    pairs = zip(outputs(found), outputs(exact), strict=True)
    return [(mine - truth).abs().max() if truth.numel() else torch.zeros(()) for mine, truth in pairs]


def torch_errors(name: str, args: tuple[Any, ...]) -> list[Tensor]:
    """How far PyTorch's own operators are from the float64 definition: of few values on many inputs of the same kind.

    A handful of results may all be close by luck, and twice their error would ask for the same luck.
    """
    few = args[0].numel() <= 10_000
    others = [(args[0] * torch.randn_like(args[0]).sign(), *args[1:]) for _ in range(16 if few else 0)]
    found = [
        errors(getattr(OPS, name)(*each), DEFINITIONS[name](*cast(each, torch.float64))) for each in (args, *others)
    ]
    return [max(each) for each in zip(*found, strict=True)]


def assert_close_to_definition(name: str, args: tuple[Any, ...], isa: str) -> None:
    """No further from the float64 definition than twice what PyTorch's own operators are in this dtype."""
    dtype = args[0].dtype
    exact, made = outputs(DEFINITIONS[name](*cast(args, torch.float64))), run(name, args, isa)
    assert [mine.shape for mine in made] == [truth.shape for truth in exact]
    assert all(mine.dtype == dtype for mine in made)
    for mine, theirs, truth in zip(errors(made, exact), torch_errors(name, args), exact, strict=True):
        # One rounding of the largest value, two where there are so few that the largest is small by luck.
        roundings = 1 if truth.numel() > 256 else 2
        largest = truth.abs().max() if truth.numel() else 0
        assert mine <= 2 * theirs + roundings * torch.finfo(dtype).eps * largest


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", TOWER_CASES)
def test_equals_the_definition(case: str, dtype: torch.dtype, isa: str) -> None:
    name, make = TOWER_CASES[case]
    args = cast(make(), dtype)
    if name == "norm_qkv_rope" and args[6] is not None:  # tables are float32 in every dtype
        args = (*args[:6], args[6].float(), args[7].float(), *args[8:])
    assert_close_to_definition(name, args, isa)


BIG_INT8 = {
    "qkv-7b": ("norm_qkv_rope", lambda: quantized("norm_qkv_rope", qkv_case(67, 1280, 3, 80, rope=True))),
    "linear-7b": ("linear_residual", lambda: quantized("linear_residual", linear_case(130, 400, 1280))),
    "lowrank-7b": ("ffn_lowrank", lambda: quantized("ffn_lowrank", lowrank_case(67, 1280, 128))),
    "merged-7b": ("ffn_lowrank", lambda: quantized("ffn_lowrank", lowrank_case(67, 1280, None))),
    "dense-7b": ("ffn_dense", lambda: quantized("ffn_dense", dense_case(67, 1280, 5120, "quick_gelu"))),
    "hybrid-7b": ("ffn_dense", lambda: quantized("ffn_dense", hybrid_case(67, 1280, 650, 630, "quick_gelu"))),
    "gated-7b": ("ffn_dense", lambda: quantized("ffn_dense", gated_case(67, 1280, 3420))),
}
EVERY_INT8: dict[str, tuple[str, Callable[[], tuple[Any, ...]]]] = INT8_CASES | BIG_INT8


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", EVERY_INT8)
def test_int8_equals_the_definition(case: str, dtype: torch.dtype, isa: str) -> None:
    name, make = EVERY_INT8[case]
    args = cast(make(), dtype)
    exact = outputs(DEFINITIONS[name](*cast(args, torch.float64)))
    for mine, truth, allowed in zip(run(name, args, isa), exact, int8_tolerances(name, args), strict=True):
        assert mine.dtype == dtype
        assert mine.shape == truth.shape
        assert (mine - truth).abs().max() <= allowed


@settings(max_examples=25)
@given(tokens=st.integers(1, 130), n=st.integers(1, 300), d=st.integers(1, 90), isa=st.sampled_from(SETS))
def test_int8_products_are_the_plain_ones(tokens: int, n: int, d: int, isa: str) -> None:
    """Rows that are whole steps already: only the last float operations may differ."""
    _, *rest = cast(quantized("linear_residual", linear_case(tokens, n, d)), torch.float32)
    codes = torch.randint(-127, 128, (tokens, n))
    codes[:, n // 2] = 127
    args = (codes * torch.exp2(torch.randint(-20, 20, (tokens, 1))), *rest)
    expected, (mine,) = OPS.linear_residual(*args), run("linear_residual", args, isa)
    assert torch.allclose(mine, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("isa", SETS)
def test_int8_rows_at_the_limits(isa: str) -> None:
    """The largest sums, rows of zeros, rows too small for a step, and rows that hold no numbers."""
    columns = 65536
    x = torch.zeros(6, columns)
    x[1], x[2, ::2], x[3, 0], x[4, 5], x[5, 7] = 1, -1, 1e-38, torch.nan, -torch.inf
    weight, scale = torch.full((3, columns), 127, dtype=torch.int8), torch.ones(3)
    weight[1] = -127
    args = x, weight, torch.arange(3.0), torch.zeros(6, 3), scale
    mine, expected = run("linear_residual", args, isa)[0], OPS.linear_residual(*args)
    assert torch.allclose(mine[:4], expected[:4], rtol=1e-6, atol=0)
    assert mine[4:].isnan().all()
    with pytest.raises(RuntimeError, match="65536 columns at most, not 65537"):
        CPU.pack_int8(torch.zeros(2, columns + 1, dtype=torch.int8), torch.ones(2), 1, isa)


@settings(max_examples=25)
@given(
    lengths=st.lists(st.integers(0, 140), min_size=1, max_size=5).filter(any),
    heads=st.integers(1, 5),
    head_dim=st.integers(1, 70),
    dtype=st.sampled_from(DTYPES),
    isa=st.sampled_from(SETS),
)
def test_attention_of_any_pack(lengths: list[int], heads: int, head_dim: int, dtype: torch.dtype, isa: str) -> None:
    assert_close_to_definition("attention", cast(attention_case(lengths, heads, head_dim), dtype), isa)


@settings(max_examples=25)
@given(
    tokens=st.integers(1, 300),
    n=st.integers(1, 90),
    d=st.integers(1, 90),
    activation=st.sampled_from(["none", *ACTIVATIONS]),
    bias=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    isa=st.sampled_from(SETS),
)
def test_linear_activation_of_any_size(
    tokens: int, n: int, d: int, activation: str, bias: bool, dtype: torch.dtype, isa: str
) -> None:
    x, weight, shift, _ = cast(linear_case(tokens, n, d), dtype)
    apply = ACTIVATIONS.get(activation, lambda value: value)
    added = shift if bias else None
    truth = apply(torch.nn.functional.linear(x.double(), weight.double(), added.double() if bias else None))
    theirs = apply(torch.nn.functional.linear(x, weight, added))
    mine = poisoned(x, tokens, d)
    CPU.linear_activation_(x, CPU.pack(weight, 1, isa), added, activation, mine, isa)
    rounding = 2 * torch.finfo(dtype).eps * truth.abs().max()
    assert (mine - truth).abs().max() <= 2 * (theirs - truth).abs().max() + rounding


@settings(max_examples=25)
@given(
    tokens=st.integers(1, 130),
    width=st.integers(1, 90),
    hidden=st.integers(1, 90),
    linear=st.integers(0, 90),
    dtype=st.sampled_from(DTYPES),
    isa=st.sampled_from(SETS),
)
def test_ffn_of_any_size(tokens: int, width: int, hidden: int, linear: int, dtype: torch.dtype, isa: str) -> None:
    """With an eps for which a row of two or three values that happen to be close does not amplify their rounding."""
    for name, args in (
        ("ffn_lowrank", lowrank_case(tokens, width, hidden)),
        ("ffn_dense", dense_case(tokens, width, hidden, "silu")),
        ("ffn_dense", hybrid_case(tokens, width, hidden, linear, "gelu")),
        ("ffn_dense", gated_case(tokens, width, hidden)),
    ):
        assert_close_to_definition(name, cast((*args[:3], 0.1, *args[4:]), dtype), isa)


@pytest.mark.parametrize("isa", SETS)
def test_one_image_does_not_see_another(isa: str) -> None:
    q, k, v, bounds, scale = cast(attention_case([40, 50], 2, 16), torch.bfloat16)
    first = q.clone()
    CPU.attention_(first, k, v, bounds, scale, isa)
    k[40:], v[40:] = torch.nan, torch.nan
    second = q.clone()
    CPU.attention_(second, k, v, bounds, scale, isa)
    assert torch.equal(first[:40], second[:40])
    assert second[40:].isnan().all()


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_and_infinity_come_through(dtype: torch.dtype, isa: str) -> None:
    x, weight, bias, residual = cast(linear_case(5, 8, 20), dtype)
    x[1, 3], x[2, 5], residual[4, 0] = torch.nan, torch.inf, -torch.inf
    (mine,) = run("linear_residual", (x, weight, bias, residual), isa)
    theirs = OPS.linear_residual(x, weight, bias, residual)
    assert torch.equal(mine.isnan(), theirs.isnan())
    assert torch.equal(mine.isinf(), theirs.isinf())
    q, k, v, *rest = cast(attention_case([30], 1, 8), dtype)
    q[3] = torch.nan
    (attended,) = run("attention", (q, k, v, *rest), isa)
    assert attended[3].isnan().all()
    assert attended[:3].isfinite().all()


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_of_the_largest_numbers(activation: str, isa: str) -> None:
    x = torch.tensor([[3e38], [1e38], [1e20], [100.0], [20.0], [-20.0], [-100.0], [-1e20], [-1e38], [-3e38]])
    found = poisoned(x, *x.shape)
    CPU.linear_activation_(x, CPU.pack(torch.ones(1, 1), 1, isa), None, activation, found, isa)
    # gelu_tanh's cube overflows in float32, and PyTorch's with it; what counts is which end it lands at.
    assert torch.allclose(found, ACTIVATIONS[activation](x.double()).float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_scores_of_minus_infinity_weigh_nothing(dtype: torch.dtype, isa: str) -> None:
    """Whole blocks of keys that a query cannot see, at the beginning, in the middle and at the end; and all of them."""
    q, k, v, *rest = cast(attention_case([520], 1, 16), dtype)
    q[:, :, 0], k[:, :, 0] = 1, 0
    k[:140, :, 0] = k[250:300, :, 0] = k[390:, :, 0] = -torch.inf
    (mine,) = run("attention", (q, k, v, *rest), isa)
    seen = torch.cat((torch.arange(140, 250), torch.arange(300, 390)))
    truth = DEFINITIONS["attention"](*cast((q, k, v, *rest), torch.float64))
    theirs = OPS.attention(q, k, v, *rest)
    assert mine.isfinite().all()
    assert (mine - truth).abs().max() <= 2 * (theirs - truth).abs().max() + torch.finfo(dtype).eps * truth.abs().max()
    k[seen, :, 0] = -torch.inf
    (blind,) = run("attention", (q, k, v, *rest), isa)
    assert blind.isnan().all()


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_results_do_not_depend_on_the_number_of_threads(threads: int) -> None:
    args = cast(attention_case([130, 61], 3, 24), torch.bfloat16)
    before = torch.get_num_threads()
    expected = run("attention", args, SETS[0])
    try:
        torch.set_num_threads(threads)
        assert torch.equal(run("attention", args, SETS[0])[0], expected[0])
    finally:
        torch.set_num_threads(before)


def test_several_python_threads_at_once() -> None:
    from concurrent.futures import ThreadPoolExecutor

    args = cast(attention_case([200], 2, 32), torch.float32)
    expected = run("attention", args, SETS[0])[0]
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(lambda _: run("attention", args, SETS[0])[0], range(20)):
            assert torch.equal(found, expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_works_on_one_thread() -> None:
    """As with torch's own operators; the parent's other threads and what they held do not exist there."""
    code = (
        "import os, torch\n"
        "from infoprune_rt.ops.cpu_library import isa\n"
        "best, q = isa(), torch.randn(300, 4, 32)\n"
        "def run():\n"
        "    out = q.clone()\n"
        "    torch.ops.infoprune_cpu.attention_(out, q, q, torch.tensor([0, 300]), 0.2, best)\n"
        "    return out\n"
        "torch.set_num_threads(2)\n"
        "expected = run()\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    torch.set_num_threads(1)\n"
        "    os._exit(0 if torch.equal(run(), expected) else 3)\n"
        "raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120, check=False).returncode == 0


def test_the_workspace_is_kept_bounded_and_released() -> None:
    large, small = (cast(attention_case([length], 2, 32), torch.float32) for length in (300, 40))
    CPU.release_workspace()
    assert CPU.workspace_bytes() == 0
    run("attention", large, SETS[0])
    held = CPU.workspace_bytes()
    assert held > 0
    for args in (small, large, small):
        run("attention", args, SETS[0])
        run("linear_residual", cast(linear_case(30, 16, 16), torch.float32), SETS[0])
    assert CPU.workspace_bytes() == held
    CPU.release_workspace()
    assert CPU.workspace_bytes() == 0


@pytest.mark.parametrize("isa", SETS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_subnormal_inputs_are_as_good_as_zero(dtype: torch.dtype, isa: str) -> None:
    x, weight, bias, residual = cast(linear_case(9, 40, 20), dtype)
    tiny = x * torch.finfo(dtype).tiny / 8
    (mine,) = run("linear_residual", (tiny, weight, bias, residual), isa)
    assert torch.equal(mine, OPS.linear_residual(torch.zeros_like(x), weight, bias, residual))
    q, k, v, *rest = cast(attention_case([70], 2, 16), dtype)
    (faint,) = run("attention", (q * torch.finfo(dtype).tiny / 8, k, v, *rest), isa)
    (none,) = run("attention", (torch.zeros_like(q), k, v, *rest), isa)
    assert torch.allclose(faint, none, rtol=torch.finfo(dtype).eps, atol=0)


def test_the_workspace_grows_no_larger_than_the_calls_at_one_time() -> None:
    from concurrent.futures import ThreadPoolExecutor

    args = cast(attention_case([90], 2, 32), torch.float32)
    CPU.release_workspace()
    run("attention", args, SETS[0])
    one = CPU.workspace_bytes()
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: run("attention", args, SETS[0]), range(300)))
    assert CPU.workspace_bytes() <= 3 * one


def test_nothing_packed_is_nothing() -> None:
    empty = torch.empty(0, 3, 8)
    CPU.attention_(empty, empty.clone(), empty.clone(), torch.tensor([0, 0]), 0.3, SETS[0])
    x = torch.empty(0, 6)
    CPU.ffn_(
        x,
        torch.ones(6),
        torch.ones(6),
        1e-6,
        CPU.pack(torch.ones(6, 6), 1, SETS[0]),
        None,
        6,
        None,
        None,
        "none",
        0,
        False,
        SETS[0],
    )


@pytest.mark.parametrize("isa", SETS)
def test_a_product_over_nothing_is_zero(isa: str) -> None:
    residual, bias = torch.ones(40, 20), torch.arange(20.0)
    CPU.linear_residual_(torch.empty(40, 0), CPU.pack(torch.empty(20, 0), 1, isa), bias, residual, False, isa)
    assert torch.equal(residual, 1 + bias.expand(40, 20))


def test_what_does_not_fit_is_refused() -> None:
    q, k, v, bounds, scale = cast(attention_case([5, 4], 2, 8), torch.float32)
    best = SETS[0]
    with pytest.raises(RuntimeError, match="from 0 to the number of rows"):
        CPU.attention_(q, k, v, torch.tensor([0, 8]), scale, best)
    with pytest.raises(RuntimeError, match="must not fall"):
        CPU.attention_(q, k, v, torch.tensor([0, 12, 9]), scale, best)
    with pytest.raises(RuntimeError, match="must not fall"):  # differences that overflow
        CPU.attention_(q, k, v, torch.tensor([0, 2**63 - 1, -2, 9]), scale, best)
    with pytest.raises(RuntimeError, match="scale must be positive"):
        CPU.attention_(q, k, v, bounds, -scale, best)
    with pytest.raises(RuntimeError, match="k must be a contiguous Float tensor"):
        CPU.attention_(q, k[:4], v, bounds, scale, best)
    with pytest.raises(RuntimeError, match="k must be a contiguous"):
        CPU.attention_(q, k.transpose(0, 1).contiguous().transpose(0, 1), v, bounds, scale, best)
    with pytest.raises(RuntimeError, match="float32 or bfloat16"):
        CPU.attention_(q.half(), k.half(), v.half(), bounds, scale, best)
    with pytest.raises(RuntimeError, match="no instruction set 'abacus'"):
        CPU.attention_(q, k, v, bounds, scale, "abacus")
    x, weight, bias, residual = cast(linear_case(3, 4, 6), torch.float32)
    with pytest.raises(RuntimeError, match="packed must be"):
        CPU.linear_residual_(x, CPU.pack(weight[:, :3].contiguous(), 1, best), bias, residual, False, "portable")
    nothing = torch.empty(0, dtype=torch.uint8)
    with pytest.raises(RuntimeError, match="as wide as `hidden` says"):  # sizes that overflow to 0
        CPU.ffn_(weight, weight[0], weight[0], 1e-6, nothing, None, 2**60, nothing, None, "none", 0, False, best)
    square, norm = CPU.pack(torch.ones(4, 4), 1, best), (torch.ones(4), torch.ones(4), 1e-6)
    with pytest.raises(RuntimeError, match="`linear` must lie between 0 and `hidden`"):
        CPU.ffn_(x, *norm, square, None, 4, square, None, "gelu", 5, False, best)
    with pytest.raises(RuntimeError, match="a gated FFN has two matrices and no linear hidden values"):
        CPU.ffn_(x, *norm, square, None, 4, square, None, "silu_gated", 1, False, best)
    with pytest.raises(RuntimeError, match=r"first must be .* not Byte of shape"):  # rows of the gate alone
        CPU.ffn_(x, *norm, square, None, 4, square, None, "silu_gated", 0, False, best)
    with pytest.raises(RuntimeError, match="a layer alone has no gate"):
        CPU.linear_activation_(x, square, None, "silu_gated", x.clone(), best)


def test_the_instruction_set_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFOPRUNE_CPU_ISA", "portable")
    assert isa() == "portable"
    monkeypatch.setenv("INFOPRUNE_CPU_ISA", "abacus")
    with pytest.raises(InfopruneError, match=r"'abacus', but this machine has .*portable"):
        isa()


@pytest.mark.parametrize(("variable", "told"), [("CXX", "no C\\+\\+ compiler"), ("PATH", "no C\\+\\+ compiler")])
def test_a_machine_without_a_compiler_is_told(variable: str, told: str, tmp_path: Any) -> None:
    code = "from infoprune_rt.ops.cpu_library import load_library\nload_library()"
    environment = {**os.environ, "INFOPRUNE_CACHE": str(tmp_path), variable: "/nowhere/at-all"}
    found = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert found.returncode
    assert "install g++" in found.stderr.splitlines()[-1]
    assert not list(tmp_path.iterdir())
