"""Host-side packing of images into one sequence: bounds, positions and rotary tables.

Everything here is a function of the image grids alone and runs on the CPU, so that no length is ever read back from a
device; the tables, which are large, are kept for packs that come again.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch
from torch import Tensor
from torch.utils._python_dispatch import _get_current_dispatch_mode

from infoprune_rt.errors import InfopruneError
from infoprune_rt.runtime.rotary_cache import RotaryCache, Tables
from infoprune_rt.towers.base import Stream

TABLES = RotaryCache(64 << 20)  # bytes; an image of 4096 patches with heads of 80 takes 2.6 million

Grid = tuple[int, int, int]  # frames, patch rows, patch columns of one image or video


def check_grids(grid_thw: Tensor, merge_size: int) -> list[Grid]:
    """The grids as Python numbers, once they are known to be sound.

    grid_thw: n x 3 integers (t, h, w), n >= 1; h and w must be multiples of ``merge_size`` because
    the tower merges merge_size x merge_size neighbouring patches.
    """
    if not isinstance(grid_thw, Tensor) or grid_thw.ndim != 2 or grid_thw.shape[1] != 3 or grid_thw.shape[0] == 0:
        got = tuple(grid_thw.shape) if isinstance(grid_thw, Tensor) else type(grid_thw).__name__
        raise InfopruneError(f"grid_thw must be a tensor with one row (t, h, w) per image, but it is {got}")
    if grid_thw.is_floating_point() or grid_thw.is_complex() or grid_thw.dtype == torch.bool:
        raise InfopruneError(f"grid_thw must hold whole numbers, not {grid_thw.dtype}")
    grids: list[Grid] = [(t, h, w) for t, h, w in grid_thw.tolist()]
    for i, (t, h, w) in enumerate(grids):
        if min(t, h, w) < 1 or h % merge_size or w % merge_size:
            raise InfopruneError(
                f"grid_thw row {i} is {(t, h, w)}: all three must be positive, h and w multiples of {merge_size}"
            )
    return grids


def sequence_bounds(lengths: Sequence[int]) -> tuple[int, ...]:
    """Cumulative bounds (S + 1 numbers, the first 0) of S sequences of the given lengths."""
    return (0, *accumulate(lengths))


def cu_seqlens(grids: Sequence[Grid]) -> tuple[int, ...]:
    """Sequence bounds of a pack: every frame of every grid attends to itself only."""
    return sequence_bounds([h * w for t, h, w in grids for _ in range(t)])


def position_ids(grids: Sequence[Grid], merge_size: int) -> Tensor:
    """Row and column of every patch, T x 2 (int64), in the order the patches are packed.

    The image processor emits patches merge window by merge window, row-major inside a window, so
    that the merger can join neighbours by a reshape; positions follow the same order.
    """
    return torch.cat([_grid_positions(h, w, merge_size).repeat(t, 1) for t, h, w in grids])


def _grid_positions(h: int, w: int, merge_size: int) -> Tensor:
    patches = torch.cartesian_prod(torch.arange(h), torch.arange(w))
    windows = patches.view(h // merge_size, merge_size, w // merge_size, merge_size, 2)
    return windows.transpose(1, 2).reshape(h * w, 2)


def axial_rope(positions: Tensor, head_dim: int, theta: float = 10000.0) -> tuple[Tensor, Tensor]:
    """cos and sin of Qwen2-VL's axial rotary embedding, each T x head_dim (float32).

    positions: T x 2. Of the head_dim / 2 angles, the first half turns with the row and the second
    with the column; they are laid out twice for the rotate-half form.
    """
    if head_dim % 4:
        raise InfopruneError(f"axial rotary positions need a head size that is a multiple of 4, not {head_dim}")
    spatial = head_dim // 2
    exponents = torch.arange(0, spatial, 2, dtype=torch.float32) / spatial
    angles = positions[..., None].float() * (1.0 / theta**exponents)  # T x 2 x head_dim / 4
    angles = angles.flatten(1).repeat(1, 2)
    return angles.cos(), angles.sin()


def pack_grids(
    grid_thw: Tensor, num_rows: int, *, merge_size: int, head_dim: int, theta: float = 10000.0, device: torch.device
) -> Stream:
    """The stream of a pack of images whose patches fill ``num_rows`` rows; cos and sin on ``device``."""
    grids = check_grids(grid_thw, merge_size)
    bounds = cu_seqlens(grids)
    if bounds[-1] != num_rows:
        raise InfopruneError(f"grid_thw describes {bounds[-1]} patches, but {num_rows} rows of pixels were given")

    def make() -> Tables:
        cos, sin = axial_rope(position_ids(grids, merge_size), head_dim, theta)
        return cos.to(device), sin.to(device)

    if torch.compiler.is_compiling() or _get_current_dispatch_mode() is not None:  # a trace's own, nobody else's
        return Stream(bounds, *make())
    return Stream(bounds, *TABLES.get((tuple(grids), merge_size, head_dim, theta, device), make))
