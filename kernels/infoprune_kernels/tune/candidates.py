"""Which tiles are worth timing, by arithmetic: those that fit in shared memory and are not known to spill registers.

Both estimates are of what kernels were seen to take when compiled (``aot``). Bytes are those of 16-bit elements, and
never fewer than the compiler takes; registers are float32 numbers that a thread keeps through the loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import triton

from infoprune_kernels.attention_parts import split_head
from infoprune_kernels.configs import Tile

HOPPER = 90
# Rows per instruction: of a warp's mma.sync, and of a warp group's wgmma.
WARP_ROWS, GROUP_ROWS = 16, 64


@dataclass(frozen=True)
class Limits:
    """What a device gives one program: its compute capability (80: sm_80), bytes of shared memory."""

    arch: int
    shared_bytes: int

    @property
    def hopper(self) -> bool:
        """Whether tensor cores read both factors from shared memory, and TMA fills it."""
        return self.arch >= HOPPER

    def stages_in_flight(self, tile: Tile) -> int:
        """Copies of a loop's tiles: on Hopper one per stage; before, one of them waits in registers."""
        return tile.num_stages if self.hopper else tile.num_stages - 1

    def takes(self, rows: int) -> bool:
        """Whether tensor cores compute tiles of so few rows."""
        return rows >= (GROUP_ROWS if self.hopper else WARP_ROWS)


def _held(columns: float, tile: Tile) -> float:
    """Numbers per thread, of this many per row."""
    return tile.block_m * columns / (32 * tile.num_warps)


def attention_bytes(limits: Limits, tile: Tile, head_dim: int) -> int:
    """Queries, keys and values of some stages; before Hopper also the weights, on their way to the other layout."""
    width = sum(split_head(head_dim))
    weights = 0 if limits.hopper else tile.block_m * tile.block_n
    return 2 * (tile.block_m * width + limits.stages_in_flight(tile) * 2 * tile.block_n * width + weights)


def attention_tiles(limits: Limits, head_dim: int) -> list[Tile]:
    """One instruction's rows per warp."""
    width = sum(split_head(head_dim))
    found = []
    for rows, columns, stages in product((32, 64, 128), (64, 128), (2, 3)):
        tile = Tile(rows, columns, rows // WARP_ROWS, stages)
        # Accumulators and scores in float32, weights in half that; before Hopper, queries beside them.
        if limits.takes(rows) and _held(width + 1.5 * columns, tile) <= (144 if limits.hopper else 128):
            found.append((tile, attention_bytes(limits, tile, head_dim)))
    return _fitting(limits, found)


def hopper_bytes(tile: Tile, head_dim: int) -> int:
    """Queries, keys and values of all stages; for barriers and what warps tell each other, what was seen."""
    width = sum(split_head(head_dim))
    return 2 * (tile.block_m * width + tile.num_stages * 2 * tile.block_n * width) + 17 * 1024


def hopper_tiles(limits: Limits, head_dim: int) -> list[Tile]:
    """Four warps, which become twelve; none before Hopper."""
    if not limits.hopper:
        return []
    tiles = [Tile(rows, columns, 4, stages) for rows, columns, stages in product((64, 128), (64, 128), (2, 3))]
    return _fitting(limits, [(tile, hopper_bytes(tile, head_dim)) for tile in tiles])


def product_bytes(limits: Limits, tile: Tile) -> int:
    """Both factors of some stages, or the output on its way to whole rows."""
    step = tile.block_k or 0
    factors = limits.stages_in_flight(tile) * (tile.block_m + tile.block_n) * step
    return 2 * max(factors, tile.block_m * tile.block_n)


def product_tiles(limits: Limits, outputs: int, *, held: int = 128) -> list[Tile]:
    """From small tiles, for few tokens, to large ones; a thread holds ``held`` numbers of the output at most."""
    small = ((32, 64, 4), (64, 32, 4), (64, 64, 4), (64, 128, 4), (128, 64, 4))
    large = ((128, 128, 8), (128, 256, 8), (256, 128, 8))
    found = []
    for (rows, columns, warps), stages in product(small + large, (3, 4)):
        tile = Tile(rows, columns, warps, stages, block_k=64)
        if limits.takes(rows) and columns <= triton.next_power_of_2(outputs) and _held(columns, tile) <= held:
            found.append((tile, product_bytes(limits, tile)))
    return _fitting(limits, found)


def lowrank_bytes(limits: Limits, tile: Tile, rank: int) -> int:
    """Of the first product rows, normalised rows and ``down``; or of the second hidden rows, ``up`` and residual."""
    ranks, step, stages = sum(split_head(rank)), tile.block_k or 0, limits.stages_in_flight(tile)
    first = tile.block_m * step + stages * (tile.block_m + ranks) * step
    second = tile.block_m * ranks + stages * (tile.block_m + ranks) * tile.block_n
    return 2 * max(first, second) + 1024


def lowrank_tiles(limits: Limits, rank: int) -> list[Tile]:
    """All ranks of a block of rows at once; none where they do not fit."""
    ranks = sum(split_head(rank))
    found = []
    for (rows, warps), stages in product(((16, 4), (32, 4), (32, 8), (64, 4), (64, 8), (128, 8)), (2, 3)):
        tile = Tile(rows, 64, warps, stages, block_k=64)
        if limits.takes(rows) and _held(ranks + tile.block_n, tile) <= 160:
            found.append((tile, lowrank_bytes(limits, tile, rank)))
    return _fitting(limits, found)


def _fitting(limits: Limits, tiles: list[tuple[Tile, int]]) -> list[Tile]:
    return [tile for tile, taken in tiles if taken <= limits.shared_bytes]
