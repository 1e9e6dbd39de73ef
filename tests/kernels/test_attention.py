"""Attention on the GPU's kernels, interpreted, against its definition."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from definitions import DTYPES, assert_close, assert_close_to_definition
from hypothesis import given
from hypothesis import strategies as st
from infoprune_kernels import attention, attention_work
from infoprune_kernels.attention import launch_attention
from infoprune_kernels.attention_hopper import CANDIDATES, launch_attention_hopper
from infoprune_kernels.attention_parts import HEAD_DIMS, split_head
from infoprune_kernels.configs import Rule, Tile, table_for
from infoprune_kernels.work import work_on
from operator_cases import DEFINITIONS, attention_case, cast

from infoprune_rt.ops import plain


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", HEAD_DIMS)
def test_equals_the_definition(dim: int, dtype: torch.dtype) -> None:
    assert_close_to_definition("attention", cast(attention_case([70, 1, 0, 129], 3, dim), dtype))


@pytest.mark.parametrize("dim", [5, 16, 20, 40, 56, 104])
@pytest.mark.parametrize("lengths", [[1], [64], [0, 0, 65, 0]])
def test_other_sizes(lengths: list[int], dim: int) -> None:
    assert_close_to_definition("attention", cast(attention_case(lengths, 1, dim), torch.float16))


@pytest.mark.parametrize(("lengths", "heads"), [([0], 3), ([0, 0], 1), ([4, 3], 0)])
def test_nothing_is_nothing(lengths: list[int], heads: int) -> None:
    made = attention(*cast(attention_case(lengths, heads, 80), torch.float16))
    assert made.shape == (sum(lengths), heads * 80)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter computes with numpy, which tells of NaN
@pytest.mark.parametrize("dim", [64, 72])
@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_what_lies_behind_a_sequence_is_not_seen(poison: float, dim: int) -> None:
    """The next image, and memory behind the last one."""
    q, k, v, _, scale = cast(attention_case([30, 40, 100], 2, dim), torch.float32)
    for part in (q, k, v):
        part[30:] = poison
    sound = (q[:30], k[:30], v[:30], torch.tensor([0, 30]), scale)
    made = attention(q, k, v, torch.tensor([0, 30, 70, 170]), scale)[:30]
    exact = DEFINITIONS["attention"](*cast(sound, torch.float64))
    assert_close((made,), (plain.attention(*sound),), (exact,))
    assert torch.equal(attention(*sound), made)


@pytest.mark.parametrize("growths", [(30, 0), (0, 30)])
def test_scores_far_apart(growths: tuple[int, int]) -> None:
    """The largest scores come first, or last, and no exponential overflows."""
    q, k, v, bounds, _ = cast(attention_case([150], 1, 32), torch.float32)
    k *= torch.linspace(*growths, 150)[:, None, None]
    assert_close_to_definition("attention", (q, k, v, bounds, 1.0))


def test_other_layouts_are_read_rightly() -> None:
    q, k, v, bounds, scale = cast(attention_case([33, 20], 3, 32), torch.float32)
    turned = [part.transpose(0, 1).contiguous().transpose(0, 1) for part in (q, k, v)]
    assert torch.equal(attention(*turned, bounds, scale), attention(q, k, v, bounds, scale))


@pytest.mark.parametrize("tile", [Tile(16, 16, 4, 2), Tile(64, 128, 4, 2)])
def test_a_tile_changes_nothing_but_rounding(tile: Tile) -> None:
    assert_kernel_is_right(launch_attention, tile, cast(attention_case([70, 33], 2, 80), torch.float32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", HEAD_DIMS)
def test_the_hopper_kernel_equals_the_definition(dim: int, dtype: torch.dtype) -> None:
    args = cast(attention_case([70, 1, 0, 129], 3, dim), dtype)
    assert_kernel_is_right(launch_attention_hopper, CANDIDATES[0], args)


@pytest.mark.parametrize("tile", CANDIDATES)
def test_the_hopper_kernel_does_not_see_the_next_image(tile: Tile) -> None:
    q, k, v, _, scale = cast(attention_case([150, 40], 2, 72), torch.float32)
    for part in (q, k, v):
        part[150:] = torch.nan
    assert_kernel_is_right(launch_attention_hopper, tile, (q[:150], k[:150], v[:150], torch.tensor([0, 150]), scale))


def test_the_hopper_kernel_serves_where_a_table_has_a_tile_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which one runs is seen by its blocks; rows that do not begin at multiples of 16 bytes are left to the other."""
    module = importlib.import_module("infoprune_kernels.attention")
    blocks: list[int] = []
    monkeypatch.setattr(module, "work_on", lambda *args: blocks.append(args[-1]) or work_on(*args))
    assert_close_to_definition("attention", cast(attention_case([20], 1, 80), torch.float16))
    table = table_for(torch.device("cpu"))
    rules = {**table.rules, "attention_hopper": (Rule({"head_dim": 96}, Tile(16, 16, 4, 2)),)}
    monkeypatch.setattr(module, "table_for", lambda device: replace(table, rules=rules))
    for dim in (80, 20, 128):
        assert_close_to_definition("attention", cast(attention_case([20], 1, dim), torch.float16))
    assert blocks == [64, 16, 64, 64]


def assert_kernel_is_right(launch: Callable[..., None], tile: Tile, args: tuple[Any, ...]) -> None:
    q, k, v, bounds, scale = args
    out = q.new_empty(q.shape[0], q.shape[1] * q.shape[2])
    launch(q, k, v, out, attention_work(bounds, tile.block_m), scale, tile)
    exact = DEFINITIONS["attention"](*cast(args, torch.float64))
    assert_close((out,), (plain.attention(*args),), (exact,))


@given(dim=st.integers(1, 256))
def test_a_head_is_cut_without_padding_it_to_a_power_of_two(dim: int) -> None:
    main, tail = split_head(dim)
    assert main >= 16
    assert tail == 0 or (main > tail >= 16 and dim > main)
    assert main + tail >= dim
    assert main + tail - dim < max(16, dim // 2)
    for power in (main, tail):
        assert power & (power - 1) == 0


def test_what_it_cannot_do_is_refused() -> None:
    q, k, v, bounds, scale = cast(attention_case([5, 4], 2, 8), torch.float32)
    for wrong in (0.0, -scale, float("nan")):
        with pytest.raises(ValueError, match="the scale must be positive"):
            attention(q, k, v, bounds, wrong)
    wide = torch.empty(4, 2, 256)
    with pytest.raises(
        ValueError,
        match=r"attention does not serve head_dim 256, heads 2, tokens 4 on \w+: it serves up to \{'head_dim': 128\}$",
    ):
        attention(wide, wide, wide, torch.tensor([0, 4]), scale)
    long = torch.empty(1, 1, 1).expand(2**24, 2, 64)
    with pytest.raises(ValueError, match=r"a sequence of 16777216 tokens with 2 heads of 64 .*split it"):
        attention(long, long, long, torch.tensor([0, 2**24]), scale)
