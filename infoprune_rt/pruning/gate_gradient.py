"""The task loss's gradient with respect to the gates, over a batch that need not fit into memory at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from infoprune_rt.errors import EmptyBatchError, InfopruneError
from infoprune_rt.pruning.head_gates import TowerHeads, gate_heads
from infoprune_rt.pruning.task_loss import TrainingBatches, labelled_tokens, task_loss, to_device


def collate_parts(
    batches: TrainingBatches, items: Sequence[int], micro_batch: int | None = None
) -> list[dict[str, Tensor]]:
    """Model inputs of the items, ``micro_batch`` of them at a time; None: all at once.

    Items that cannot be used are missing from the parts as they would be from the whole batch.
    """
    size = micro_batch or len(items)
    parts: list[dict[str, Tensor]] = []
    empty: list[EmptyBatchError] = []
    for start in range(0, len(items), size):
        try:
            parts.append(batches.collate(items[start : start + size]))
        except EmptyBatchError as error:
            empty.append(error)
    if not parts:
        raise empty[0]
    return parts


def gate_gradient(
    model: nn.Module,
    heads: TowerHeads,
    zeta: Tensor,
    parts: Sequence[Mapping[str, Tensor]],
    autocast: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> tuple[Tensor, Tensor]:
    """Task loss (a scalar) and its gradient with respect to ``zeta`` [L, H], on zeta's device.

    Each part's graph is freed before the next part runs. The loss is a mean over labelled tokens, so a part weighs as
    much as it has of them: the result is that of all parts in one batch, up to rounding.
    """
    counts = [labelled_tokens(part) for part in parts]
    if not any(counts):
        raise InfopruneError("a batch has no labelled token; every example needs an answer to learn from")
    leaf = zeta.detach().requires_grad_()
    losses: list[Tensor] = []
    slopes: list[Tensor] = []
    # The hooks stay on during backward: checkpointed activations are computed again there.
    with gate_heads(heads.blocks, leaf, heads.head_dim):
        for part, count in zip(parts, counts, strict=True):
            if count:
                with autocast():
                    loss = task_loss(model, to_device(part, zeta.device)) * (count / sum(counts))
                slopes += torch.autograd.grad(loss, leaf)
                losses.append(loss.detach())
    return torch.stack(losses).sum(), torch.stack(slopes).sum(0)
