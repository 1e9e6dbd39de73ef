"""Which blocks of queries attention has to compute: the flat work list of a pack, made on the host.

Lists are kept on their device, a bounded number of them: all blocks of a tower ask for the same one. What replays
captured launches with changing packs gives its own list instead (``using_work``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache

import torch
from torch import Tensor

_KEPT = 128  # packs whose lists stay on a device: some KiB each

_given: ContextVar[Mapping[int, Tensor] | None] = ContextVar("given_work", default=None)
# Read by somebody's graph whenever it replays, and so never let go.
_captured: dict[tuple[tuple[int, ...], int, torch.device], Tensor] = {}


def attention_work(cu_seqlens: Tensor | Sequence[int], block_m: int) -> Tensor:
    """The blocks of queries of packed sequences.

    Args:
        cu_seqlens: bounds of S sequences, rising from 0: S + 1 numbers on the host.
        block_m: queries per block.

    Returns:
        Items x 3, int32, on the CPU: a block's first row, and where its sequence begins and ends. The blocks of long
        sequences come first, so that none of them is left running alone at the end.
    """
    bounds = torch.as_tensor(cu_seqlens, dtype=torch.int64)
    lengths = bounds.diff()
    order = lengths.argsort(descending=True, stable=True)
    blocks = (lengths[order] + block_m - 1) // block_m
    sequence = order.repeat_interleave(blocks)
    before = (blocks.cumsum(0) - blocks).repeat_interleave(blocks)
    first = bounds[sequence] + (torch.arange(len(sequence)) - before) * block_m
    return torch.stack((first, bounds[sequence], bounds[sequence + 1]), 1).int()


def padded_work(work: Tensor, items: int) -> Tensor:
    """A longer list of the same work: items x 3, those behind it a sequence without tokens.

    Raises:
        ValueError: it has more items already.
    """
    if len(work) > items:
        raise ValueError(f"a work list of {len(work)} items does not fit in {items}")
    return torch.cat((work, work.new_zeros(items - len(work), 3)))


@contextmanager
def using_work(work: Mapping[int, Tensor]) -> Iterator[None]:
    """Attention within takes one of these lists, on their device, whatever bounds it is called with.

    work: by block_m, for each that ``attention_tile`` names within.
    """
    token = _given.set(work)
    try:
        yield
    finally:
        _given.reset(token)


def work_on(device: torch.device, bounds: tuple[int, ...], block_m: int) -> Tensor:
    """The work list of a pack (or the one that was given) on a device.

    Raises:
        ValueError: the pack is met for the first time while its launches are being captured.
    """
    given = _given.get()
    if given is not None:
        return given[block_m]
    work = _on_device(bounds, block_m, device)
    if device.type == "cuda":
        if torch.cuda.is_current_stream_capturing():
            _captured[bounds, block_m, device] = work
        else:
            work.record_stream(torch.cuda.current_stream(device))  # it may be let go while other streams still read it
    return work


@lru_cache(maxsize=_KEPT)
def _on_device(bounds: tuple[int, ...], block_m: int, device: torch.device) -> Tensor:
    if device.type == "cuda" and torch.cuda.is_current_stream_capturing():
        raise ValueError("attention: run this pack once before its launches are captured")
    with torch.inference_mode(False):  # the next caller may be outside of it
        work = attention_work(bounds, block_m).to(device)
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()  # whichever stream asks next finds it there
    return work
