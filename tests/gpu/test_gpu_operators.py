"""The five operators on CUDA, on the Triton kernels, in bfloat16 and float16, over odd and real sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from on_gpu import DEVICE, HALVES, HEAD_DIMS, assert_close_to_definition, assert_kernel_close, moved
from operator_cases import (
    CASES,
    DEFINITIONS,
    OPS,
    assert_close,
    attention_case,
    cast,
    dense_case,
    gated_case,
    hybrid_case,
    linear_case,
    lowrank_case,
    outputs,
    qkv_case,
)
from torch import Tensor
from torch.library import opcheck

from infoprune_rt.ops import plain
from infoprune_rt.ops.triton_backend import demanding

if TYPE_CHECKING:
    from infoprune_kernels.configs import Tile

BF16, FP16 = HALVES
RAGGED = [70, 1, 0, 129]
COCO = 34 * 46  # patches of a 640 x 480 image
OPCHECKED = ("qkv-rope", "attention-ragged", "linear", "lowrank", "merged", "quick_gelu", "hybrid", "gated")


@pytest.mark.parametrize(
    ("dim", "dtype"), [*((dim, BF16) for dim in HEAD_DIMS), *((dim, FP16) for dim in (72, 80, 128))]
)
def test_attention_of_a_ragged_pack(dim: int, dtype: torch.dtype) -> None:
    assert_close_to_definition("attention", attention_case(RAGGED, 3, dim), dtype)


@pytest.mark.parametrize(
    ("lengths", "heads", "dim"),
    [([1], 1, 80), ([65], 5, 80), ([0, 0, 65, 0], 7, 80), ([64, 3], 1, 16), ([130], 1, 40), ([9], 1, 104)],
)
def test_attention_at_odd_sizes(lengths: list[int], heads: int, dim: int) -> None:
    assert_close_to_definition("attention", attention_case(lengths, heads, dim), FP16)


@pytest.mark.parametrize("dtype", HALVES)
def test_attention_of_a_real_image(dtype: torch.dtype) -> None:
    assert_close_to_definition("attention", attention_case([COCO], 8, 80), dtype)


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_attention_does_not_see_the_next_image(poison: float) -> None:
    q, k, v, _, scale = moved(cast(attention_case([30, 40, 100], 3, 80), BF16))
    for part in (q, k, v):
        part[30:] = poison
    sound = (q[:30], k[:30], v[:30], torch.tensor([0, 30]), scale)
    exact = DEFINITIONS["attention"](*cast(sound, torch.float64))
    with demanding("triton"):
        mine = OPS.attention(q, k, v, torch.tensor([0, 30, 70, 170]), scale)[:30]
    assert_close((mine,), (plain.attention(*sound),), (exact,))


@pytest.mark.parametrize("dim", HEAD_DIMS)
def test_queries_keys_and_values(dim: int) -> None:
    assert_close_to_definition("norm_qkv_rope", qkv_case(61, 96, 3, dim, rope=True), BF16)


@pytest.mark.parametrize(
    ("tokens", "width", "heads", "dim", "rope"),
    [(1, 96, 5, 80, True), (130, 64, 1, 8, True), (9, 30, 7, 6, True), (70, 1024, 9, 64, False)],
)
def test_queries_keys_and_values_at_odd_sizes(tokens: int, width: int, heads: int, dim: int, rope: bool) -> None:
    assert_close_to_definition("norm_qkv_rope", qkv_case(tokens, width, heads, dim, rope), FP16)


@pytest.mark.parametrize("dtype", HALVES)
def test_queries_keys_and_values_of_a_real_image(dtype: torch.dtype) -> None:
    """With tables in float32, as towers have them."""
    args = moved(cast(qkv_case(COCO, 1280, 8, 80, rope=True), dtype))
    assert_kernel_close("norm_qkv_rope", (*args[:6], args[6].float(), args[7].float(), *args[8:]))


@pytest.mark.parametrize(
    ("tokens", "inputs", "outputs", "dtype"),
    [(67, 80, 96, BF16), (1, 33, 7, FP16), (129, 1, 130, FP16), (COCO, 640, 1280, BF16), (COCO, 400, 1280, FP16)],
)
def test_product_bias_and_residual(tokens: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
    assert_close_to_definition("linear_residual", linear_case(tokens, inputs, outputs), dtype)


@pytest.mark.parametrize(
    ("rank", "dtype"),
    [*((rank, BF16) for rank in (64, 128, 200, 256, 384, 512, 640, None)), (128, FP16), (512, FP16), (None, FP16)],
)
def test_a_low_rank_ffn_of_the_real_width(rank: int | None, dtype: torch.dtype) -> None:
    """As the device's table has it at these tokens, of arithmetic in two products; and merged."""
    assert_close_to_definition("ffn_lowrank", lowrank_case(COCO, 1280, rank), dtype)


@pytest.mark.parametrize(
    ("tokens", "width", "rank"), [(1, 64, 5), (67, 96, 50), (130, 40, 24), (9, 33, 1), (20, 650, 600), (1, 33, None)]
)
def test_a_low_rank_ffn_at_odd_sizes(tokens: int, width: int, rank: int | None) -> None:
    assert_close_to_definition("ffn_lowrank", lowrank_case(tokens, width, rank), FP16)


def one_kernel_cases() -> list[tuple[int, int, int, int, torch.dtype]]:
    """Tokens, width, rank, rows of a tile: as tables have them for many tokens."""
    real = [(COCO, 1280, rank, rows, BF16) for rank in (20, 64, 200, 256) for rows in (64, 128)]
    high = [(COCO, 1280, rank, 64, BF16) for rank in (384, 512)]
    odd = [(1, 64, 5, 64), (67, 96, 50, 64), (130, 40, 24, 128), (9, 33, 1, 128), (129, 650, 200, 64)]
    return [*real, *high, *((*sizes, FP16) for sizes in odd)]


@pytest.mark.parametrize(("tokens", "width", "rank", "rows", "dtype"), one_kernel_cases())
def test_a_low_rank_ffn_in_one_kernel(tokens: int, width: int, rank: int, rows: int, dtype: torch.dtype) -> None:
    """Whatever the tables have serve so few tokens."""
    assert_one_kernel_close(lowrank_case(tokens, width, rank), rows, dtype)


def assert_one_kernel_close(args: tuple[Any, ...], rows: int, dtype: torch.dtype) -> None:
    from infoprune_kernels.configs import Tile
    from infoprune_kernels.ffn_lowrank import launch_ffn_lowrank

    there = moved(cast(args, dtype))
    made = launch_ffn_lowrank(*there, Tile(rows, 64, 8, 2, block_k=64))
    exact = DEFINITIONS["ffn_lowrank"](*cast(there, torch.float64))
    assert_close((made,), (plain.ffn_lowrank(*there),), (exact,))


def test_rows_far_from_zero_lose_nothing() -> None:
    """Where a sum of squares less the squared mean would keep nothing."""
    args = lowrank_case(20, 72, 16)
    far = (args[0] + 1000, *args[1:])
    assert_close_to_definition("ffn_lowrank", far, FP16)
    assert_one_kernel_close(far, 64, FP16)


@pytest.mark.parametrize("activation", plain.ACTIVATIONS)
def test_an_ffn_with_neurons(activation: str) -> None:
    assert_close_to_definition("ffn_dense", dense_case(67, 48, 140, activation), BF16)


@pytest.mark.parametrize(
    ("tokens", "width", "neurons", "dtype"), [(1, 33, 1, FP16), (130, 7, 65, FP16), (COCO, 1280, 5120, BF16)]
)
def test_numbers_of_neurons(tokens: int, width: int, neurons: int, dtype: torch.dtype) -> None:
    assert_close_to_definition("ffn_dense", dense_case(tokens, width, neurons, "quick_gelu"), dtype)


@pytest.mark.parametrize(
    ("tokens", "width", "neurons", "linear", "dtype"),
    [(67, 48, 70, 70, BF16), (1, 33, 1, 1, FP16), (130, 7, 3, 65, FP16), (COCO, 1280, 640, 640, BF16)],
)
def test_a_hybrid_ffn(tokens: int, width: int, neurons: int, linear: int, dtype: torch.dtype) -> None:
    assert_close_to_definition("ffn_dense", hybrid_case(tokens, width, neurons, linear, "quick_gelu"), dtype)


@pytest.mark.parametrize(
    ("tokens", "width", "hidden", "dtype"),
    [(67, 48, 140, BF16), (1, 33, 1, FP16), (130, 7, 65, FP16), (COCO, 1280, 3420, BF16)],
)
def test_a_gated_ffn(tokens: int, width: int, hidden: int, dtype: torch.dtype) -> None:
    assert_close_to_definition("ffn_dense", gated_case(tokens, width, hidden), dtype)


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("attention", attention_case([0, 0], 3, 80)),
        ("norm_qkv_rope", qkv_case(0, 32, 3, 16, rope=True)),
        ("linear_residual", linear_case(0, 16, 32)),
        ("ffn_lowrank", lowrank_case(0, 32, 8)),
        ("ffn_lowrank", lowrank_case(0, 32, None)),
        ("ffn_dense", dense_case(0, 32, 48, "gelu")),
        ("ffn_dense", gated_case(0, 32, 48)),
    ],
)
def test_nothing_is_nothing(name: str, args: tuple[Any, ...]) -> None:
    assert_close_to_definition(name, args, BF16)


def hopper_cases() -> list[tuple[int, int, torch.dtype]]:
    return [*((tile, dim, BF16) for tile in (0, 1) for dim in HEAD_DIMS), (0, 80, FP16)]


@pytest.mark.parametrize(("tile", "dim", "dtype"), hopper_cases())
def test_attention_for_hopper(tile: int, dim: int, dtype: torch.dtype) -> None:
    """Its candidates, whether a table chooses them or not."""
    if torch.cuda.get_device_capability() < (9, 0):
        pytest.skip("needs a Hopper GPU")
    from infoprune_kernels.attention_hopper import CANDIDATES, launch_attention_hopper

    assert_attention_close(launch_attention_hopper, CANDIDATES[tile], dim, dtype)


@pytest.mark.parametrize(("rows", "warps"), [(64, 4), (128, 8)])
@pytest.mark.parametrize("dim", HEAD_DIMS)
def test_attention_with_every_tile(dim: int, rows: int, warps: int) -> None:
    """Of the tables, which have the large one serve only many tokens."""
    from infoprune_kernels.attention import launch_attention
    from infoprune_kernels.configs import Tile

    assert_attention_close(launch_attention, Tile(rows, 64, warps, 2), dim, BF16)


def assert_attention_close(launch: Callable[..., None], tile: Tile, dim: int, dtype: torch.dtype) -> None:
    from infoprune_kernels import attention_work

    q, k, v, bounds, scale = moved(cast(attention_case(RAGGED, 3, dim), dtype))
    out = q.new_empty(len(q), 3 * dim)
    launch(q, k, v, out, attention_work(bounds, tile.block_m).to(DEVICE), scale, tile)
    exact = DEFINITIONS["attention"](*cast((q, k, v, bounds, scale), torch.float64))
    assert_close((out,), (plain.attention(q, k, v, bounds, scale),), (exact,))


def test_what_the_sanitizer_looks_at() -> None:
    """Its script; and from here on its kernels lie in Triton's cache, as compiling beside the sanitizer takes long."""
    import sanitized

    for name, made in sanitized.every_kernel():
        assert made.isfinite().all(), name


def requiring_gradients(name: str, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """All but rotary tables, which are constants in a tower."""
    constant = (6, 7) if name == "norm_qkv_rope" else ()
    return tuple(
        a.requires_grad_() if isinstance(a, Tensor) and a.is_floating_point() and i not in constant else a
        for i, a in enumerate(args)
    )


@pytest.mark.parametrize("case", OPCHECKED)
def test_opcheck(case: str) -> None:
    name, make = CASES[case]
    with demanding("triton"):
        opcheck(getattr(OPS, name).default, requiring_gradients(name, moved(cast(make(), BF16))))


@pytest.mark.parametrize("case", OPCHECKED)
def test_gradients_are_those_of_the_definition(case: str) -> None:
    """They are computed from the saved inputs, so that it does not matter what ran forward."""
    name, make = CASES[case]
    args = moved(cast(make(), BF16))
    found = []
    for operator in (getattr(OPS, name), getattr(plain, name)):
        leaves = requiring_gradients(name, tuple(a.clone() if isinstance(a, Tensor) else a for a in args))
        with demanding("triton"):
            made = outputs(operator(*leaves))
        torch.autograd.backward(made, [torch.ones_like(part) for part in made])
        found.append([a.grad for a in leaves if isinstance(a, Tensor) and a.requires_grad])
    assert all(map(torch.equal, *found))
