"""The memory that captured passes read their pack from."""

from __future__ import annotations

import torch
from torch import Tensor

from infoprune_rt.ops.triton_backend import demanding
from infoprune_rt.runtime.blocks import BlockStack


class PackBuffers:
    """Room for a pack of up to ``tokens`` rows (T x d) and ``work_items`` blocks of queries; smaller ones lie in front.

    head_dim: None for towers without rotary tables. like: gives the rows' dtype, and the device.
    """

    def __init__(self, tokens: int, work_items: int, width: int, head_dim: int | None, like: Tensor) -> None:
        self.x = like.new_zeros(tokens, width)
        self.work = torch.zeros(work_items, 3, dtype=torch.int32, device=like.device)
        self.cos, self.sin = (
            None if head_dim is None else torch.zeros(tokens, head_dim, dtype=torch.float32, device=like.device)
            for _ in range(2)
        )

    def load(self, x: Tensor, work: Tensor, cos: Tensor | None, sin: Tensor | None) -> None:
        """Put a pack in front; the rest of the work list does nothing."""
        self.x[: len(x)].copy_(x, non_blocking=True)
        self.work[: len(work)].copy_(work, non_blocking=True)
        self.work[len(work) :].zero_()
        for buffer, table in ((self.cos, cos), (self.sin, sin)):
            if buffer is not None and table is not None:
                buffer[: len(x)].copy_(table, non_blocking=True)

    def run(self, blocks: BlockStack, tokens: int, work_items: int) -> Tensor:
        """The blocks over the first ``tokens`` rows (tokens x d), attention over the first items of the work list.

        Rows behind the pack come out as anything: nothing but attention mixes rows, and no item names them.
        """
        import infoprune_kernels

        tables = (None if table is None else table[:tokens] for table in (self.cos, self.sin))
        with demanding("triton"), infoprune_kernels.using_work(self.work[:work_items]):
            out: Tensor = blocks(self.x[:tokens], torch.tensor([0, tokens]), *tables)
        return out

    @property
    def bytes(self) -> int:
        """Of all buffers."""
        return sum(t.nbytes for t in (self.x, self.work, self.cos, self.sin) if t is not None)
