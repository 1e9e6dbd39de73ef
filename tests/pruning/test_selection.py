from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infoprune_rt.errors import InfopruneError
from infoprune_rt.pruning.head_scores import HeadScores
from infoprune_rt.pruning.selection import budget, kept_heads, threshold, zeta_of

# Few distinct values, so that ties are common.
TABLES = st.tuples(st.integers(1, 5), st.integers(1, 6)).flatmap(
    lambda s: st.lists(
        st.lists(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0]), min_size=s[1], max_size=s[1]).map(tuple),
        min_size=s[0],
        max_size=s[0],
    ).map(tuple)
)


@settings(deadline=None, max_examples=60)
@given(table=TABLES, keep=st.floats(0, 1), data=st.data())
def test_budget_keeps_the_best_and_exactly_as_many_as_asked(
    table: tuple[tuple[float, ...], ...], keep: float, data: st.DataObject
) -> None:
    scores = HeadScores("michel", "clip", table)
    blocks, heads = len(table), len(table[0])
    total = round(keep * blocks * heads)
    min_heads = data.draw(st.integers(0, total // blocks))
    masks = budget(scores, keep, min_heads)
    values = scores.tensor()
    assert int(masks.sum()) == total
    assert (masks.sum(1) >= min_heads).all()
    for row, mask in zip(values, masks, strict=True):
        if mask.any() and not mask.all():
            assert row[mask].min() >= row[~mask].max()  # inside a block always the best
    above = masks.sum(1) > min_heads  # blocks that won more than their reserve compete with every dropped head
    if above.any() and not masks.all():
        assert min(values[i][masks[i]].min() for i in above.nonzero().flatten()) >= values[~masks].max()


def test_ties_go_to_the_earlier_head_and_empty_blocks_are_allowed() -> None:
    scores = HeadScores("zeta", "clip", ((0.5, 0.5, 0.5), (0.1, 0.1, 0.1)))
    assert kept_heads(budget(scores, 1 / 3)) == ((0, 1), ())
    assert kept_heads(budget(scores, 1 / 3, min_heads=1)) == ((0,), (0,))


def test_blocks_that_are_not_used_keep_all_heads_and_do_not_compete() -> None:
    scores = HeadScores("zeta", "clip", ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3), (0.9, 0.9, 0.0)))
    assert kept_heads(budget(scores, 0.5, used_blocks=2)) == ((0, 1, 2), (), (0, 1, 2))
    assert kept_heads(budget(scores, 0.5, 1, used_blocks=2)) == ((0, 1), (2,), (0, 1, 2))
    assert kept_heads(threshold(scores, 0.35, used_blocks=2)) == ((0, 1), (), (0, 1, 2))
    assert kept_heads(budget(scores, 0, used_blocks=0)) == ((0, 1, 2),) * 3
    with pytest.raises(InfopruneError, match="min_heads=1 in each of 2 blocks"):
        budget(scores, 0.1, 1, used_blocks=2)


def test_threshold_removes_what_lies_below() -> None:
    scores = HeadScores("zeta", "clip", ((0.5, 0.49, 0.9), (0.1, 0.2, 0.3)))
    assert torch.equal(threshold(scores, 0.5), torch.tensor([[True, False, True], [False, False, False]]))


@pytest.mark.parametrize("z", [0.0, 1.0, -3.0, float("nan")])
def test_thresholds_that_cannot_be_are_told(z: float) -> None:
    with pytest.raises(InfopruneError, match="between 0 and 1"):
        threshold(HeadScores("zeta", "clip", ((0.5,),)), z)


def test_a_threshold_is_for_zeta_only() -> None:
    with pytest.raises(InfopruneError, match="magnitude scores; use a budget"):
        threshold(HeadScores("magnitude", "clip", ((0.5,),)), 0.5)


def test_zeta_to_fold_is_the_clamped_score_of_trained_gates() -> None:
    """Hard-concrete gates are scored before their clamp."""
    assert zeta_of(HeadScores("zeta", "clip", ((-0.05, 0.0, 0.5, 1.08),))).tolist() == [[0.0, 0.0, 0.5, 1.0]]
    with pytest.raises(InfopruneError, match="these are michel scores; set the kept heads back to 1"):
        zeta_of(HeadScores("michel", "clip", ((0.5,),)))


@pytest.mark.parametrize(
    ("keep", "min_heads", "message"),
    [(1.2, 0, "0..1"), (float("nan"), 0, "0..1"), (0.5, 4, "0..3"), (0.3, 2, "fewer than min_heads=2")],
)
def test_budgets_that_cannot_be_are_told(keep: float, min_heads: int, message: str) -> None:
    scores = HeadScores("zeta", "clip", ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6)))
    with pytest.raises(InfopruneError, match=message):
        budget(scores, keep, min_heads)
