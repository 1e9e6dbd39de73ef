"""The memory that captured passes read their pack from."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from infoprune_rt.ops.triton_backend import demanding
from infoprune_rt.runtime.blocks import BlockStack


class PackBuffers:
    """Room for a pack of up to ``tokens`` rows (T x d) and its blocks of queries; smaller ones lie in front.

    work_items: how many blocks, by queries per block, in which layers differ. head_dim: None for towers without rotary
    tables. like: gives the rows' dtype, and the device.
    """

    def __init__(
        self, tokens: int, work_items: Mapping[int, int], width: int, head_dim: int | None, like: Tensor
    ) -> None:
        self.x = like.new_zeros(tokens, width)
        self.work = {
            block_m: torch.zeros(items, 3, dtype=torch.int32, device=like.device)
            for block_m, items in work_items.items()
        }
        self.cos, self.sin = (
            None if head_dim is None else torch.zeros(tokens, head_dim, dtype=torch.float32, device=like.device)
            for _ in range(2)
        )

    def load(self, x: Tensor, work: Mapping[int, Tensor], cos: Tensor | None, sin: Tensor | None) -> None:
        """Put a pack in front; the rest of its work lists, by queries per block, does nothing."""
        self.x[: len(x)].copy_(x, non_blocking=True)
        for block_m, items in work.items():
            self.work[block_m][: len(items)].copy_(items, non_blocking=True)
            self.work[block_m][len(items) :].zero_()
        for buffer, table in ((self.cos, cos), (self.sin, sin)):
            if buffer is not None and table is not None:
                buffer[: len(x)].copy_(table, non_blocking=True)

    def run(self, blocks: BlockStack, tokens: int, work_items: Mapping[int, int]) -> Tensor:
        """The blocks over the first ``tokens`` rows (tokens x d), attention over the first items of the work lists.

        Rows behind the pack come out as anything: nothing but attention mixes rows, and no item names them.
        """
        import infoprune_kernels

        tables = (None if table is None else table[:tokens] for table in (self.cos, self.sin))
        work = {block_m: self.work[block_m][:items] for block_m, items in work_items.items()}
        with demanding("triton"), infoprune_kernels.using_work(work):
            out: Tensor = blocks(self.x[:tokens], torch.tensor([0, tokens]), *tables)
        return out

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        """Who lets the buffers go must wait for what this stream does with them."""
        for tensor in self._tensors:
            tensor.record_stream(stream)

    @property
    def bytes(self) -> int:
        """Of all buffers."""
        return sum(tensor.nbytes for tensor in self._tensors)

    @property
    def _tensors(self) -> list[Tensor]:
        return [t for t in (self.x, *self.work.values(), self.cos, self.sin) if t is not None]
