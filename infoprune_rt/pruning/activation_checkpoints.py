"""Backward with less memory: a layer's activations are computed again there instead of being kept."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from infoprune_rt.errors import InfopruneError


@contextmanager
def checkpointed_layers(model: nn.Module, wanted: bool = True) -> Iterator[None]:
    """Until the context ends, autograd keeps the input of every transformer layer and nothing from inside it.

    For a model in eval mode: transformers' own switch acts in training mode only, where dropout is on. Hooks inside a
    layer run again during backward, so gates must still be on then. wanted: False leaves everything as it is.
    """
    layers = [module for module in model.modules() if wanted and isinstance(module, GradientCheckpointingLayer)]
    if wanted and not layers:
        raise InfopruneError(
            f"{type(model).__name__} has no layers that transformers can checkpoint; train without checkpointed "
            "activations, in smaller micro-batches"
        )
    before = [layer.__dict__.get("forward") for layer in layers]
    for layer in layers:
        # Dropout is off, so nothing random has to be repeated.
        layer.__dict__["forward"] = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
    try:
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            del layer.__dict__["forward"]
            if forward is not None:  # accelerate puts its own there when it spreads a model over devices
                layer.__dict__["forward"] = forward
