"""The lists of what attention has to compute: made, padded, kept on their device, given."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from definitions import assert_close
from hypothesis import given
from hypothesis import strategies as st
from infoprune_kernels import attention, attention_work, padded_work, using_work
from infoprune_kernels.attention import launch_attention
from infoprune_kernels.attention_hopper import CANDIDATES, launch_attention_hopper
from infoprune_kernels.configs import Tile
from infoprune_kernels.work import _KEPT, _on_device, work_on
from operator_cases import DEFINITIONS, attention_case, cast

from infoprune_rt.ops import plain

CPU = torch.device("cpu")


@given(lengths=st.lists(st.integers(0, 300), min_size=1, max_size=8), block_m=st.sampled_from([16, 64, 128]))
def test_the_work_list_holds_every_query_once_and_long_sequences_first(lengths: list[int], block_m: int) -> None:
    bounds = torch.tensor([0, *lengths]).cumsum(0)
    work = attention_work(bounds, block_m)
    assert work.dtype == torch.int32
    assert torch.equal(work, attention_work(bounds.tolist(), block_m))
    seen = Counter(row for first, _, end in work.tolist() for row in range(first, min(first + block_m, end)))
    assert seen == Counter(range(sum(lengths)))
    spans = [(begin, end) for _, begin, end in work.tolist()]
    assert set(spans) <= set(zip(bounds.tolist(), bounds[1:].tolist(), strict=False))
    sizes = [end - begin for begin, end in spans]
    assert sizes == sorted(sizes, reverse=True)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # 0 / 0 in rows that are not stored; numpy tells of it
@pytest.mark.parametrize(
    ("launch", "tile"), [(launch_attention, Tile(16, 32, 4, 2)), (launch_attention_hopper, CANDIDATES[0])]
)
@pytest.mark.parametrize("dim", [64, 80])
def test_a_padded_list_does_the_same_and_touches_no_other_row(launch: object, tile: Tile, dim: int) -> None:
    """As when a captured graph replays: buffers for more rows than the pack has, and NaN in those."""
    args = cast(attention_case([37, 1, 20], 3, dim), torch.float32)
    q, k, v, bounds, scale = args
    roomy = [torch.full((90, 3, dim), torch.nan) for _ in range(3)]
    for room, part in zip(roomy, (q, k, v), strict=True):
        room[:58] = part
    out = torch.full((90, 3 * dim), torch.nan)
    launch(*roomy, out, padded_work(attention_work(bounds, tile.block_m), 12), scale, tile)  # type: ignore[operator]
    assert_close((out[:58],), (plain.attention(*args),), (DEFINITIONS["attention"](*cast(args, torch.float64)),))
    assert out[58:].isnan().all()


def test_a_list_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="a work list of 3 items does not fit in 2"):
        padded_work(attention_work([0, 40], 16), 2)


def test_the_list_that_was_given_is_the_one_that_is_used() -> None:
    q, k, v, bounds, scale = cast(attention_case([20, 30], 2, 32), torch.float32)
    work = {cut: attention_work(bounds, cut) for cut in (64, 128)}
    with using_work(work):
        assert torch.equal(attention(q, k, v, torch.tensor([0, 50]), scale), attention(q, k, v, bounds, scale))
        assert all(work_on(CPU, (0, 50), cut) is work[cut] for cut in work)
    assert len(work_on(CPU, (0, 50), 128)) == 1


def test_lists_are_kept_but_not_all_of_them() -> None:
    first = work_on(CPU, (0, 7), 16)
    assert work_on(CPU, (0, 7), 16) is first
    for tokens in range(100, 101 + _KEPT):
        work_on(CPU, (0, tokens), 16)
    assert _on_device.cache_info().currsize == _KEPT
    assert work_on(CPU, (0, 7), 16) is not first


def test_a_list_made_in_inference_mode_serves_outside_of_it() -> None:
    with torch.inference_mode():
        made = work_on(CPU, (0, 12345), 16)
    assert not made.is_inference()
