"""The task loss of a frozen VLM on question-answer batches, and which items make up which batch."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from infoprune_rt.errors import InfopruneError

IGNORED_LABEL = -100
_ORDER_STREAM = 0  # keeps the order apart from the other random streams of the same seed


class TrainingBatches(Protocol):
    """An indexable data set that makes a batch of any of its items (``evaluation.training_batches.VQABatches``)."""

    @property
    def digest(self) -> str:
        """Differs between different data; a run never resumes on other data than it began with."""
        ...

    def __len__(self) -> int: ...

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        """Model inputs with ``labels`` [B, S], -100 where nothing is to be predicted.

        Raises EmptyBatchError where none of these items can be used, though others could.
        """
        ...


def task_loss(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
    """Mean cross-entropy over the labelled tokens, float32, of any HF VLM: a scalar.

    Logits are computed only at positions whose next token is labelled in some row: with a vocabulary of 150k and an
    image in every prompt the others would be most of the memory.
    """
    labels = inputs["labels"]
    targets = (labels[:, 1:] != IGNORED_LABEL).any(0).nonzero().flatten()
    if not len(targets):
        raise InfopruneError("a batch has no labelled token; every example needs an answer to learn from")
    features = {name: value for name, value in inputs.items() if name != "labels"}
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        logits = model(**features, logits_to_keep=targets, use_cache=False).logits
    else:
        logits = model(**features, use_cache=False).logits[:, targets]
    wanted = labels[:, targets + 1]
    loss_dtype = torch.promote_types(logits.dtype, torch.float32)
    return nn.functional.cross_entropy(
        logits.flatten(0, 1).to(loss_dtype), wanted.flatten(), ignore_index=IGNORED_LABEL
    )


def labelled_tokens(inputs: Mapping[str, Tensor]) -> int:
    """How many tokens ``task_loss`` averages over."""
    return int((inputs["labels"][:, 1:] != IGNORED_LABEL).sum())


def batch_indices(num_items: int, start: int, count: int, seed: int) -> list[int]:
    """Items ``start .. start + count`` of an endless sequence of passes, each pass in an order of its own.

    A pure function of its arguments, so that a resumed run sees what an uninterrupted one would.
    """
    if num_items < 1:
        raise InfopruneError("the data set has no items; give it at least one question")
    places = (divmod(position, num_items) for position in range(start, start + count))
    return [int(_pass_order(num_items, seed, epoch)[offset]) for epoch, offset in places]


@lru_cache(maxsize=2)
def _pass_order(num_items: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return np.random.default_rng([seed, _ORDER_STREAM, epoch]).permutation(num_items)


def to_device(inputs: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The same batch on ``device``; anything that is not a tensor is passed on as it is."""
    return {name: v.to(device) if isinstance(v, Tensor) else v for name, v in inputs.items()}


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient, dropout is off; both are as before when the context ends.

    Autograd then records nothing before the first gate, and no weight gradient behind it.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    training = [m for m in model.modules() if m.training]
    model.eval()
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True
