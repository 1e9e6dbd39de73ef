"""A model's answer in a wider dtype without a second copy of its weights: each layer's are converted as it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ROWS = 8192  # of a linear layer that are converted at once; a vocabulary has twenty times as many


def wider(dtype: torch.dtype) -> torch.dtype:
    """float32 for half precision, float64 for float32."""
    return torch.float64 if dtype == torch.float32 else torch.float32


@contextmanager
def in_wider(model: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """All layers of a model in ``dtype`` compute in the wider one until the context ends; the weights stay its own.

    What a layer forces to float32 by itself (norms and softmax do) stays that.
    """
    layers = [layer for layer in model.modules() if any(_is(p, dtype) for p in layer._parameters.values())]
    before = [vars(layer).get("forward") for layer in layers]
    for layer in layers:
        made = _linear if type(layer) is nn.Linear else _other
        vars(layer)["forward"] = made(layer, wider(dtype))
    try:
        yield
    finally:
        for layer, forward in zip(layers, before, strict=True):
            if forward is None:
                del vars(layer)["forward"]
            else:
                vars(layer)["forward"] = forward


def _is(parameter: Tensor | None, dtype: torch.dtype) -> bool:
    return parameter is not None and parameter.dtype == dtype


def _linear(layer: nn.Module, wide: torch.dtype) -> Callable[..., Tensor]:
    weight, bias = layer._parameters["weight"], layer._parameters["bias"]
    assert weight is not None

    def forward(x: Tensor) -> Tensor:
        parts = [F.linear(x.to(wide), rows.to(wide)) for rows in torch.split(weight, _ROWS)]
        out = torch.cat(parts, -1)
        return out if bias is None else out + bias.to(wide)

    return forward


def _other(layer: nn.Module, wide: torch.dtype) -> Callable[..., Any]:
    computes = layer.forward

    def widened(value: Any) -> Any:
        return value.to(wide) if isinstance(value, Tensor) and value.is_floating_point() else value

    def forward(*args: Any, **kwargs: Any) -> Any:
        kept = layer._parameters
        layer._parameters = {name: widened(parameter) for name, parameter in kept.items()}
        try:
            return computes(*map(widened, args), **{name: widened(value) for name, value in kwargs.items()})
        finally:
            layer._parameters = kept

    return forward
