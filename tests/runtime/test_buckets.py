"""Which bucket serves a pack: never one that could lose against launching it kernel by kernel."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infoprune_rt.runtime.buckets import BUDGETS, Bucket, room_for, smallest

TIMES = st.floats(0.01, 100)
CUTS = (64, 128)  # queries per block; not every bucket's layers have both
ROOMS = st.dictionaries(st.sampled_from(CUTS), st.integers(1, 60))
LADDERS = st.lists(st.builds(Bucket, tokens=st.integers(1, 5000), work_items=ROOMS, replay_ms=TIMES), max_size=6)
ITEMS = st.fixed_dictionaries({cut: st.integers(1, 70) for cut in CUTS})


@given(ladder=LADDERS, tokens=st.integers(1, 6000), items=ITEMS, launch_ms=TIMES)
def test_the_smallest_that_holds_a_pack_and_cannot_lose(
    ladder: list[Bucket], tokens: int, items: dict[int, int], launch_ms: float
) -> None:
    chosen = smallest(ladder, tokens, items, launch_ms)
    holding = [b for b in ladder if b.tokens >= tokens and all(b.work_items[cut] >= items[cut] for cut in b.work_items)]
    sound = [b for b in holding if b.tokens == tokens or b.replay_ms <= launch_ms]
    assert (chosen is None) == (not sound)
    if chosen is not None:
        assert chosen in sound
        assert chosen.tokens == min(b.tokens for b in sound)


def test_above_the_largest_there_is_none() -> None:
    ladder = [Bucket(64, {64: 2}, 0.1), Bucket(128, {64: 3, 128: 2}, 0.2)]
    assert smallest(ladder, 129, {64: 1, 128: 1}, launch_ms=5.0) is None
    assert smallest(ladder, 100, {64: 4, 128: 1}, launch_ms=5.0) is None
    assert smallest(ladder, 100, {64: 3, 128: 3}, launch_ms=5.0) is None
    assert smallest([], 1, {}, launch_ms=5.0) is None


def test_a_bucket_slower_than_the_launches_serves_only_what_fills_it() -> None:
    slow = Bucket(4096, {128: 40}, 6.0)
    assert smallest([slow], 4000, {128: 32}, launch_ms=5.0) is None
    assert smallest([slow], 4096, {128: 32}, launch_ms=5.0) is slow


def test_the_ladder_never_doubles_a_pack() -> None:
    assert list(BUDGETS) == sorted(BUDGETS)
    assert all(tokens % 16 == 0 for tokens in BUDGETS)
    assert all(upper <= 1.5 * lower for lower, upper in pairwise(BUDGETS))


@pytest.mark.parametrize("block_m", [16, 64, 128])
@given(lengths=st.lists(st.integers(256, 2000), min_size=1, max_size=16))
def test_images_that_are_not_small_always_find_room(block_m: int, lengths: list[int]) -> None:
    items = sum(-(-length // block_m) for length in lengths)
    assert items <= room_for(sum(lengths), block_m)
