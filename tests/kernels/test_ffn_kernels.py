"""The FFNs on the GPU's kernels, interpreted, against their definitions."""

from __future__ import annotations

import importlib
from dataclasses import replace

import pytest
import torch
from definitions import DTYPES, assert_close, assert_close_to_definition
from infoprune_kernels.configs import Tile, table_for, tables
from infoprune_kernels.ffn_dense import ffn_dense, gated_product
from infoprune_kernels.ffn_lowrank import ffn_lowrank, launch_ffn_lowrank
from infoprune_kernels.linear_residual import linear as product
from operator_cases import DEFINITIONS, cast, dense_case, gated_case, hybrid_case, linear_case, lowrank_case

from infoprune_rt.ops import plain
from infoprune_rt.ops.plain import ACTIVATIONS

SMALL = Tile(16, 32, 1, 1, 16)


def assert_one_kernel_is_close(args: tuple[object, ...]) -> None:
    exact = DEFINITIONS["ffn_lowrank"](*cast(args, torch.float64))
    assert_close((launch_ffn_lowrank(*args, SMALL),), (plain.ffn_lowrank(*args),), (exact,))


@pytest.fixture
def always_one_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also for few tokens, for which the table has two products."""
    rules = table_for(torch.device("cpu")).rules
    table = replace(
        tables()[-1], rules={**rules, "ffn_lowrank": tuple(rule for rule in rules["ffn_lowrank"] if rule.tile)}
    )
    monkeypatch.setattr(importlib.import_module("infoprune_kernels.ffn_lowrank"), "table_for", lambda device: table)


@pytest.mark.usefixtures("always_one_kernel")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [1, 5, 16, 50, 64, 72])
def test_a_low_rank_in_one_kernel(rank: int, dtype: torch.dtype) -> None:
    assert_close_to_definition("ffn_lowrank", cast(lowrank_case(67, 96, rank), dtype))


@pytest.mark.parametrize(("tokens", "width"), [(1, 64), (130, 40), (9, 33), (2, 1), (65, 130)])
@pytest.mark.usefixtures("always_one_kernel")
def test_odd_sizes(tokens: int, width: int) -> None:
    assert_close_to_definition("ffn_lowrank", cast(lowrank_case(tokens, width, min(width, 24)), torch.float16))


@pytest.mark.parametrize("rank", [1, 16, 40, 48, 72])
def test_a_tile_changes_nothing_but_rounding(rank: int) -> None:
    assert_one_kernel_is_close(cast(lowrank_case(35, 72, rank), torch.float32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_more_ranks_than_fit_take_two_products(dtype: torch.dtype) -> None:
    assert table_for(torch.device("cpu")).find("ffn_lowrank", tokens=10**6, width=650, rank=600) is None
    assert_close_to_definition("ffn_lowrank", cast(lowrank_case(20, 650, 600), dtype))


@pytest.mark.parametrize(("tokens", "width", "dtype"), [(67, 96, dtype) for dtype in DTYPES] + [(1, 33, DTYPES[1])])
def test_a_merged_map(tokens: int, width: int, dtype: torch.dtype) -> None:
    assert_close_to_definition("ffn_lowrank", cast(lowrank_case(tokens, width, None), dtype))


@pytest.mark.parametrize("far", [1000.0, -30000.0])
def test_rows_far_from_zero_lose_nothing(far: float) -> None:
    """Where a sum of squares less the squared mean would keep nothing."""
    args = cast(lowrank_case(20, 72, 16), torch.float32)
    assert_one_kernel_is_close((args[0] + far, *args[1:]))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_an_ffn_with_neurons(activation: str, dtype: torch.dtype) -> None:
    assert_close_to_definition("ffn_dense", cast(dense_case(67, 48, 140, activation), dtype))


@pytest.mark.parametrize(("tokens", "width", "neurons"), [(1, 33, 1), (130, 7, 65)])
def test_odd_numbers_of_neurons(tokens: int, width: int, neurons: int) -> None:
    assert_close_to_definition("ffn_dense", cast(dense_case(tokens, width, neurons, "quick_gelu"), torch.float16))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("neurons", "linear"), [(70, 70), (3, 130), (0, 5), (139, 1)])
def test_a_hybrid_ffn(neurons: int, linear: int, dtype: torch.dtype) -> None:
    """The linear hidden values begin within a tile and with one, and are all there is."""
    assert_close_to_definition("ffn_dense", cast(hybrid_case(67, 48, neurons, linear, "quick_gelu"), dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("tokens", "width", "hidden"), [(67, 48, 140), (1, 33, 1), (130, 7, 65), (5, 16, 32)])
def test_a_gated_ffn(tokens: int, width: int, hidden: int, dtype: torch.dtype) -> None:
    assert_close_to_definition("ffn_dense", cast(gated_case(tokens, width, hidden), dtype))


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
def test_gates_far_out() -> None:
    args = cast(gated_case(5, 16, 20), torch.float32)
    assert_close_to_definition("ffn_dense", (*args[:5], args[5] * 300, *args[6:]))


@pytest.mark.parametrize("tile", [SMALL, Tile(64, 16, 4, 2, 32)])
def test_a_tile_changes_nothing_but_rounding_of_hidden_values(tile: Tile) -> None:
    """More row blocks than stand beside each other, pairs over several tiles, and a linear part that begins in one."""
    x, weight, bias, _ = cast(linear_case(150, 20, 70), torch.float32)
    first = torch.nn.functional.linear(x, weight, bias)
    exact = torch.nn.functional.linear(x.double(), weight.double(), bias.double())
    for made, *form in (
        (gated_product(x, weight, bias, tile), "silu_gated", 0),
        (product(x, weight, bias, tile, activation="gelu", linear_columns=39), "gelu", 39),
    ):
        assert_close((made,), (plain.activated(first, *form),), (plain.activated(exact, *form),))


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # to infinity, as on the GPU
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_far_out(activation: str) -> None:
    """No exponential overflows into NaN."""
    args = cast(dense_case(5, 16, 20, activation), torch.float32)
    assert_close_to_definition("ffn_dense", (*args[:5], args[5] * 300, *args[6:]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_is_nothing(dtype: torch.dtype) -> None:
    for rank in (16, None):
        assert ffn_lowrank(*cast(lowrank_case(0, 32, rank), dtype)).shape == (0, 32)
    assert ffn_dense(*cast(dense_case(0, 32, 48, "gelu"), dtype)).shape == (0, 32)
    assert ffn_dense(*cast(gated_case(0, 32, 48), dtype)).shape == (0, 32)


def test_a_gate_with_a_linear_part_is_refused() -> None:
    with pytest.raises(ValueError, match="a gated FFN has no linear hidden values; linear must be 0, not 3"):
        ffn_dense(*cast(gated_case(5, 16, 20), torch.float16), 3)


def test_an_unknown_activation_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown activation 'abacus'; known are quick_gelu, gelu,"):
        ffn_dense(*cast(dense_case(5, 16, 20, "abacus"), torch.float16))
