"""Rotary tables of packs that come again: the same tensors, up to a number of bytes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from infoprune_rt.runtime.packing import TABLES, pack_grids
from infoprune_rt.runtime.rotary_cache import RotaryCache, Tables

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _empty() -> None:
    TABLES.clear()


def tables(rows: int) -> Tables:
    return torch.ones(rows, 4), torch.zeros(rows, 4)


def pack(grid: Any = ((1, 4, 6),), **changes: Any) -> Any:
    rows = sum(t * h * w for t, h, w in grid)
    options = {"merge_size": 2, "head_dim": 8, "device": CPU} | changes
    return pack_grids(torch.tensor(grid), rows, **options)


def test_a_pack_that_comes_again_gets_the_tables_it_had() -> None:
    assert pack().cos is pack().cos
    assert pack().sin is pack().sin


@pytest.mark.parametrize(
    "changes",
    [{"grid": ((1, 6, 4),)}, {"grid": ((2, 4, 6),)}, {"head_dim": 12}, {"theta": 5.0}, {"merge_size": 1}],
)
def test_another_pack_gets_others(changes: dict[str, Any]) -> None:
    first, other = pack(), pack(**changes)
    assert first.cos.shape != other.cos.shape or not torch.equal(first.cos, other.cos)


def test_no_more_is_kept_than_may_be_and_the_longest_unused_goes_first() -> None:
    cache = RotaryCache(2 * 10 * 4 * 4 * 3)
    for key in "abc":
        cache.get(key, lambda: tables(10))
    kept = cache.get("a", lambda: tables(10))
    cache.get("d", lambda: tables(10))
    assert cache.bytes == cache.max_bytes
    assert cache.get("a", lambda: tables(10)) is kept
    assert cache.get("b", lambda: tables(9))[0].shape == (9, 4)


def test_what_is_larger_than_all_is_made_each_time() -> None:
    cache = RotaryCache(100)
    assert cache.get(1, lambda: tables(10)) is not cache.get(1, lambda: tables(10))
    assert cache.bytes == 0


def test_tables_made_in_inference_mode_serve_training() -> None:
    with torch.inference_mode():
        pack()
    weight = torch.ones(24, 8, requires_grad=True)
    (weight * pack().cos).sum().backward()
    assert weight.grad is not None


def test_what_is_made_while_operators_are_followed_is_not_kept() -> None:
    """It may be a trace's own, which means nothing outside of it."""
    with FlopCounterMode(display=False):
        pack()
    assert TABLES.bytes == 0
    compiled = torch.compile(lambda x: x + pack().cos, backend="eager")
    compiled(torch.ones(24, 8))
    assert torch.equal(pack().cos, pack().cos)


def test_threads_may_ask_at_once() -> None:
    cache = RotaryCache(2000)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda i: cache.get(i % 5, lambda: tables(i % 5 + 1))[0].shape[0], range(400)))
    assert made == [i % 5 + 1 for i in range(400)]
    assert cache.bytes <= 2000
