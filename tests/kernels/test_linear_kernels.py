"""The projections on the GPU's kernels, interpreted, against their definitions."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from definitions import DTYPES, assert_close, assert_close_to_definition
from infoprune_kernels.configs import Tile
from infoprune_kernels.layer_norm import layer_norm
from infoprune_kernels.linear_residual import linear, linear_residual
from infoprune_kernels.norm_qkv_rope import launch_qkv_rope, norm_qkv_rope
from infoprune_kernels.tiles import place_of
from operator_cases import cast, linear_case, norm_args, outputs, qkv_case, rand
from torch import Tensor

from infoprune_rt.ops import plain

HEAD_DIMS = (32, 64, 72, 80, 88, 96, 128)


def exact_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    return torch.nn.functional.layer_norm(x, x.shape[1:], weight, bias, eps)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", HEAD_DIMS)
def test_queries_keys_and_values(dim: int, dtype: torch.dtype) -> None:
    assert_close_to_definition("norm_qkv_rope", cast(qkv_case(61, 96, 3, dim, rope=True), dtype))


@pytest.mark.parametrize("rope", [True, False])
@pytest.mark.parametrize(
    ("tokens", "width", "heads", "dim"), [(1, 96, 5, 80), (130, 64, 1, 8), (9, 30, 7, 6), (9, 1, 1, 2)]
)
def test_odd_sizes(tokens: int, width: int, heads: int, dim: int, rope: bool) -> None:
    assert_close_to_definition("norm_qkv_rope", cast(qkv_case(tokens, width, heads, dim, rope), torch.float16))


def test_both_halves_of_the_tables_are_read() -> None:
    """Against the plain definition: towers' tables repeat their first half, but nothing says that they must."""
    args = cast(qkv_case(9, 32, 3, 20, rope=True), torch.float64)
    args = (*args[:6], rand(9, 20), rand(9, 20), *args[8:])
    assert_close(norm_qkv_rope(*cast(args, torch.float32)), plain.norm_qkv_rope(*cast(args, torch.float32)),
                 plain.norm_qkv_rope(*args))  # fmt: skip


def test_tables_of_float32_turn_half_precision() -> None:
    args = cast(qkv_case(40, 32, 2, 16, rope=True), torch.float16)
    rounded = norm_qkv_rope(*args)
    made = norm_qkv_rope(*args[:6], args[6].float(), args[7].float(), *args[8:])
    assert all(torch.equal(a, b) for a, b in zip(made, rounded, strict=True))


def test_q_k_and_v_are_contiguous_and_apart() -> None:
    made = norm_qkv_rope(*cast(qkv_case(5, 32, 3, 16, rope=True), torch.float16))
    assert all(part.is_contiguous() and part.shape == (5, 3, 16) for part in made)
    assert len({part.untyped_storage().data_ptr() for part in made}) == 3


def test_an_odd_head_dimension_is_refused() -> None:
    with pytest.raises(ValueError, match="head dimension must be even, not 5"):
        norm_qkv_rope(*cast(qkv_case(7, 20, 1, 5, rope=False), torch.float16))


@pytest.mark.parametrize("dtype", DTYPES)
def test_product_bias_and_residual(dtype: torch.dtype) -> None:
    assert_close_to_definition("linear_residual", cast(linear_case(67, 80, 96), dtype))


@pytest.mark.parametrize(("tokens", "inputs", "outputs"), [(1, 33, 7), (129, 1, 130), (3, 400, 64)])
def test_odd_sizes_of_a_product(tokens: int, inputs: int, outputs: int) -> None:
    assert_close_to_definition("linear_residual", cast(linear_case(tokens, inputs, outputs), torch.float16))


@pytest.mark.parametrize("tile", [Tile(16, 32, 1, 1, 16), Tile(64, 16, 4, 2, 32)])
def test_a_tile_changes_nothing_but_rounding(tile: Tile) -> None:
    """More row blocks than stand beside each other, and a last band that is not full."""
    args = cast(linear_case(150, 20, 70), torch.float32)
    x, weight, bias, residual = args
    made = linear(x, weight, bias, tile, residual=residual)
    exact = plain.linear_residual(*cast(args, torch.float64))
    assert_close((made,), (plain.linear_residual(*args),), (exact,))

    qkv = cast(qkv_case(70, 20, 3, 20, rope=True), torch.float32)
    out = tuple(torch.empty(70, 3, 20) for _ in range(3))
    launch_qkv_rope(exact_norm(*qkv[:4]), *qkv[4:8], out, tile)
    assert_close(out, plain.norm_qkv_rope(*qkv), plain.norm_qkv_rope(*cast(qkv, torch.float64)))


@triton.jit
def _places(out, row_blocks, column_blocks):
    row_block, column_block = place_of(tl.program_id(0), row_blocks, column_blocks)
    tl.store(out + row_block * column_blocks + column_block, tl.program_id(0))


@pytest.mark.parametrize(("row_blocks", "column_blocks"), [(1, 1), (3, 5), (8, 2), (21, 4)])
def test_every_tile_has_one_program(row_blocks: int, column_blocks: int) -> None:
    out = torch.full((row_blocks, column_blocks), -1)
    _places[(out.numel(),)](out, row_blocks, column_blocks)
    assert out.flatten().sort().values.tolist() == list(range(out.numel()))
    band = out[:8]
    assert band.max() == band.numel() - 1  # whole bands first


@pytest.mark.parametrize(("tokens", "width"), [(1, 1280), (6, 33), (9, 1)])
def test_rows_are_normalised(tokens: int, width: int) -> None:
    args = cast((rand(tokens, width), *norm_args(width)), torch.float16)
    assert_close((layer_norm(*args),), (exact_norm(*args),), (exact_norm(*cast(args, torch.float64)),))


def test_rows_far_from_zero_are_normalised_as_exactly() -> None:
    """Where a sum of squares less the squared mean would keep nothing."""
    args = cast((rand(5, 100) + 1000, *norm_args(100)), torch.float16)
    exact = exact_norm(*cast(args, torch.float64))
    assert_close((layer_norm(*args),), (exact_norm(*args),), (exact,))


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_nothing(dtype: torch.dtype) -> None:
    for part in norm_qkv_rope(*cast(qkv_case(0, 32, 3, 16, rope=True), dtype)):
        assert part.shape == (0, 3, 16)
    assert linear_residual(*cast(linear_case(0, 16, 32), dtype)).shape == (0, 32)


def test_other_layouts_are_read_rightly() -> None:
    def turned(args: tuple[object, ...]) -> list[object]:
        return [a.T.contiguous().T if isinstance(a, Tensor) and a.ndim == 2 else a for a in args]

    for operator, args in ((linear_residual, linear_case(20, 33, 40)), (norm_qkv_rope, qkv_case(9, 32, 3, 16, True))):
        args = cast(args, torch.float16)
        for mine, usual in zip(outputs(operator(*turned(args))), outputs(operator(*args)), strict=True):
            assert torch.equal(mine, usual)
