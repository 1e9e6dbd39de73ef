"""A layer's cache in which visual tokens have fewer KV heads than text, or none."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer


class VisualCacheLayer(DynamicLayer):  # type: ignore[misc]  # transformers is not type-checked here
    """Text tokens' keys and values of all KV heads, as ``DynamicLayer`` holds them, and apart from them visual ones.

    visual_keys, visual_values: [g, Tv, head_dim] of the g KV heads that some live head reads. visual_tokens: how many
    the prompt has, kept here or not: positions count them.
    """

    def __init__(self, visual_keys: Tensor, visual_values: Tensor, visual_tokens: int) -> None:
        super().__init__()
        self.visual_keys, self.visual_values = visual_keys, visual_values
        self.visual_tokens = visual_tokens

    def get_seq_length(self) -> int:
        """Tokens that the model has read, visual ones included."""
        length = int(super().get_seq_length())
        return length and length + self.visual_tokens


def start_layer(cache: Cache | None, index: int, layer: VisualCacheLayer) -> None:
    """Put a prompt's layer into the place of the cache's own, which is still empty; None: nothing is cached."""
    if cache is None:
        return
    if index < len(cache.layers):
        cache.layers[index] = layer
    else:
        cache.layers.append(layer)


def append_text(cache: Cache | None, index: int, keys: Tensor, values: Tensor) -> tuple[Any, Any]:
    """Text tokens' keys and values [G, n, head_dim] into the cache; what it holds then, [G, Tt, head_dim]."""
    if cache is None:
        return keys, values
    keys, values = cache.layers[index].update(keys[None], values[None])
    return keys[0], values[0]
