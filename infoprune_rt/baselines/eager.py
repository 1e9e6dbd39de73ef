"""Transformers' eager attention for a while: the only one that takes a mask per head and shows its weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import PreTrainedModel

from infoprune_rt.errors import InfopruneError


@contextmanager
def eager_attention(text_model: PreTrainedModel) -> Iterator[None]:
    """Until the context ends; then the decoder has its own implementation back."""
    before = text_model.config._attn_implementation
    text_model.set_attn_implementation("eager")
    if text_model.config._attn_implementation != "eager":
        raise InfopruneError(
            f"the attention of {type(text_model).__name__} cannot be switched from {before!r} to eager, which YOPO's "
            'masks and statistic need; load the model with attn_implementation="eager"'
        )
    try:
        yield
    finally:
        text_model.set_attn_implementation(before)
