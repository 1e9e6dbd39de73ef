"""From scores to masks: which heads stay."""

from __future__ import annotations

import torch
from torch import Tensor

from infoprune_rt.errors import InfopruneError
from infoprune_rt.pruning.head_scores import HeadScores


def threshold(scores: HeadScores, z: float, used_blocks: int | None = None) -> Tensor:
    """The paper's rule: heads scoring below ``z`` go. Returns masks [L, H], bool, True where a head stays.

    Blocks from ``used_blocks`` on keep all heads. ``z`` is a value of zeta; scores of other methods are on scales of
    their own, where no z is meaningful.
    """
    if scores.method != "zeta":
        raise InfopruneError(f"a threshold is a value of zeta, but these are {scores.method} scores; use a budget")
    if not 0 < z < 1:
        raise InfopruneError(f"the zeta threshold must lie between 0 and 1 (exclusive), not {z}")
    return _with_unused(scores.tensor()[:used_blocks] >= z, scores)


def budget(scores: HeadScores, keep: float, min_heads: int = 0, used_blocks: int | None = None) -> Tensor:
    """Keep the top fraction ``keep`` of all heads of the tower, at least ``min_heads`` in each block.

    Blocks from ``used_blocks`` on do not compete: they keep all heads and count neither way. Returns masks
    [L, H], bool, with exactly round(keep * U * H) heads kept in the U used blocks. Ties go to the earlier head.
    """
    values = scores.tensor()[:used_blocks]
    num_blocks, num_heads = values.shape
    if not 0 <= keep <= 1:
        raise InfopruneError(f"the fraction of heads to keep must lie in 0..1, not {keep}")
    if not 0 <= min_heads <= num_heads:
        raise InfopruneError(f"min_heads must lie in 0..{num_heads}, not {min_heads}")
    total = round(keep * num_blocks * num_heads)
    if total < min_heads * num_blocks:
        raise InfopruneError(
            f"keeping {keep:g} of {num_blocks * num_heads} heads leaves {total}, fewer than min_heads={min_heads} "
            f"in each of {num_blocks} blocks; keep more or lower min_heads"
        )
    masks = torch.zeros(num_blocks, num_heads, dtype=torch.bool)
    order = values.argsort(dim=1, descending=True, stable=True)
    masks.scatter_(1, order[:, :min_heads], True)
    # Reserved heads first, then by score.
    rank = torch.where(masks, torch.inf, values).flatten().argsort(descending=True, stable=True)
    masks.view(-1)[rank[:total]] = True
    return _with_unused(masks, scores)


def zeta_of(scores: HeadScores) -> Tensor:
    """zeta [L, H] in 0..1, to be folded into the weights; a gate's score is its zeta before the clamp."""
    if scores.method != "zeta":
        raise InfopruneError(
            f"only a trained zeta can be folded into the weights, but these are {scores.method} scores; set the "
            "kept heads back to 1, which is the default"
        )
    return scores.tensor().clamp(0, 1)


def _with_unused(masks: Tensor, scores: HeadScores) -> Tensor:
    """All heads of the blocks behind the last used one, below the masks of those before."""
    whole = torch.ones(len(scores.scores), masks.shape[1], dtype=torch.bool)
    whole[: len(masks)] = masks
    return whole


def kept_heads(masks: Tensor) -> tuple[tuple[int, ...], ...]:
    """Masks [L, H] as the plan writes them: the kept heads' indices, block by block."""
    return tuple(tuple(row.nonzero().flatten().tolist()) for row in masks)
