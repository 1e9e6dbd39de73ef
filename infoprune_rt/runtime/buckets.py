"""Which captured size serves a pack: buckets of tokens and of attention's work items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# Patches; each at most half as large again as the one before, all multiples of 16; 1568 is a COCO picture's 1564.
BUDGETS = (64, 96, 144, 208, 304, 448, 672, 1008, 1312, 1568, 2256, 3376, 4096)
_SMALL_IMAGE = 256  # patches: a pack of images no smaller than this always finds room in the work list


@dataclass(frozen=True)
class Bucket:
    """One captured size.

    tokens: rows that it computes. work_items: blocks of queries that it has programs for, by queries per block: each
    way in which one of the tower's layers cuts a pack. replay_ms: what it takes on
    the device when it is full of one image.
    """

    tokens: int
    work_items: Mapping[int, int]
    replay_ms: float

    def serves(self, tokens: int, work_items: Mapping[int, int], launch_ms: float) -> bool:
        """Whether it holds the pack, and padding to it costs no more than the launches that it saves.

        A pass without a graph takes at least as long as the host needs to issue it, launch_ms. A bucket that takes no
        longer even when it is full can never lose, however little is in it; any other one serves what fills it.
        """
        fits = tokens <= self.tokens and all(work_items[cut] <= room for cut, room in self.work_items.items())
        return fits and (self.replay_ms <= launch_ms or tokens == self.tokens)


def room_for(tokens: int, block_m: int) -> int:
    """The work items that a bucket has programs for: of one image, and a part of a block for every small image."""
    return -(-tokens // block_m) + tokens // _SMALL_IMAGE


def smallest(buckets: Sequence[Bucket], tokens: int, work_items: Mapping[int, int], launch_ms: float) -> Bucket | None:
    """The smallest bucket that serves a pack; None where launching it kernel by kernel is better."""
    serving = [bucket for bucket in buckets if bucket.serves(tokens, work_items, launch_ms)]
    return min(serving, key=lambda bucket: bucket.tokens, default=None)
