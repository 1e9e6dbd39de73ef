"""Gram matrices of every block's head outputs on the dense stream, in one streaming pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from infoprune_rt.errors import InfopruneError
from infoprune_rt.pruning.task_loss import TrainingBatches, to_device
from infoprune_rt.towers.base import SourceBlock, TowerAdapter


@torch.no_grad()
def stream_gram(
    model: nn.Module, adapter: TowerAdapter, batches: TrainingBatches, item_batches: Iterable[Sequence[int]]
) -> Tensor:
    """Z^T Z of each block over all images of the given item batches: [L, n, n] float64, n = H * head_dim.

    Only the tower runs. Memory does not grow with the number of images. Sums are kept in float64, because squaring
    halves the digits of small singular values.
    """
    tower = adapter.tower_of(model)
    blocks = adapter.blocks(tower)
    device = next(tower.parameters()).device
    n = blocks[0].out_proj.in_features
    gram = torch.zeros(len(blocks), n, n, dtype=torch.float64, device=gram_device(device))
    with _adding(blocks, gram):
        for batch, items in enumerate(item_batches):
            tower(**to_device(adapter.tower_inputs(batches.collate(items)), device))
            _check_finite(gram, batch, items)
    return gram


def gram_device(device: torch.device) -> torch.device:
    """Where the Gram matrices of a model on ``device`` live: beside it, if it has float64 (Apple's MPS has not)."""
    return torch.device("cpu") if device.type == "mps" else device


@contextmanager
def _adding(blocks: Sequence[SourceBlock], gram: Tensor) -> Iterator[None]:
    def hook(i: int) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        def add(_module: nn.Module, args: tuple[Any, ...]) -> None:
            z = args[0].flatten(0, -2).to(gram)
            gram[i].addmm_(z.mT, z)

        return add

    handles = [block.out_proj.register_forward_pre_hook(hook(i)) for i, block in enumerate(blocks)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _check_finite(gram: Tensor, batch: int, items: Sequence[int]) -> None:
    finite = gram.isfinite().all(-1).all(-1)
    if not finite.all():
        block = int((~finite).nonzero()[0])
        raise InfopruneError(
            f"block {block}: the head outputs are not finite on calibration batch {batch} (dataset items "
            f"{list(items)}); look for NaN in the weights or in these images"
        )
