"""How much device memory a run takes at its peak, and how much CUDA graphs hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def growth(run: Callable[[], object], device: torch.device) -> int:
    """Bytes by which allocated memory peaks during a run above what it was."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def graph_bytes() -> dict[tuple[int, int], int]:
    """Bytes that CUDA graphs keep from everyone else, by the pool that they share."""
    found: dict[tuple[int, int], int] = {}
    segments: list[dict[str, Any]] = torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
    for segment in segments:
        pool = tuple(segment.get("segment_pool_id", (0, 0)))
        if pool != (0, 0):  # everyone's
            found[pool] = found.get(pool, 0) + int(segment["total_size"])
    return found
