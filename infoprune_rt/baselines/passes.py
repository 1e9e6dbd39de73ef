"""Follows a model's passes: which rows of the pass under way are visual, and whether YOPO can serve it at all."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from infoprune_rt.baselines.decoder import Decoder
from infoprune_rt.baselines.layout import VisualLayout
from infoprune_rt.errors import InfopruneError


class Passes:
    """Two hooks on a live model: one sees the token ids, the other what reaches the decoder.

    ``prompt``: the layout of the prompt in this pass; None in a pass that continues one from its cache, whose rows are
    all text. ``last``: the last prompt's layout.
    """

    def __init__(self, decoder: Decoder, *, with_frames: bool) -> None:
        self.prompt: VisualLayout | None = None
        self.last: VisualLayout | None = None
        self._decoder, self._with_frames = decoder, with_frames
        self._input_ids: Tensor | None = None
        self._prompts: WeakKeyDictionary[Cache, VisualLayout] = WeakKeyDictionary()
        self._hooks = [
            decoder.inner.register_forward_pre_hook(self._see_ids, with_kwargs=True),
            decoder.text_model.register_forward_pre_hook(self._see_pass, with_kwargs=True),
        ]

    def remove(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()

    def remember(self, cache: Cache | None) -> VisualLayout:
        """The prompt that the pass belongs to: it may be this pass's, whose cache is then known by it from now on."""
        if self.prompt is None:
            assert cache is not None  # _see_pass has found the prompt by it
            return self._prompts[cache]
        if cache is not None:
            self._prompts[cache] = self.prompt
        return self.prompt

    def _see_ids(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._input_ids = args[0] if args else kwargs.get("input_ids")

    def _see_pass(self, _module: nn.Module, _args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        input_ids, self._input_ids = self._input_ids, None
        cache = kwargs.get("past_key_values")
        _check(input_ids, cache, kwargs.get("attention_mask"))
        assert input_ids is not None
        is_visual = self._decoder.is_visual(input_ids[0])
        if cache is None or cache.get_seq_length() == 0:
            self.prompt = self.last = self._layout(is_visual, kwargs.get("position_ids"))
            return
        self.prompt = None
        if cache not in self._prompts:
            raise InfopruneError("the cache was not filled under this YOPO installation; start from the whole prompt")
        if is_visual.any():
            raise InfopruneError("new pictures came with a cache that is already filled; give the whole prompt at once")

    def _layout(self, is_visual: Tensor, position_ids: Tensor | None) -> VisualLayout:
        if not is_visual.any():
            raise InfopruneError("the prompt holds no image tokens, so YOPO has nothing to prune; add a picture")
        if is_visual[-1]:
            raise InfopruneError("the prompt ends in a picture, whose rows YOPO prunes; end it with text")
        layout = VisualLayout.of(is_visual)
        if not self._with_frames:
            return layout
        return VisualLayout.of(is_visual, self._decoder.frames(layout.visual, position_ids))


def _check(input_ids: Tensor | None, cache: Cache | None, attention_mask: Any) -> None:
    if input_ids is None:
        raise InfopruneError("YOPO finds pictures by their token ids; call the full model with input_ids")
    if len(input_ids) != 1:
        raise InfopruneError(f"YOPO serves one prompt at a time, but the batch has {len(input_ids)}; call it for each")
    if attention_mask is not None and not (isinstance(attention_mask, Tensor) and attention_mask.ndim == 2):
        raise InfopruneError("YOPO makes its own attention masks; give none, or the processor's (1 per token)")
    if attention_mask is not None and not torch.all(attention_mask):
        raise InfopruneError("YOPO serves no padding; give the prompt without padding tokens")
    if cache is not None and not isinstance(cache, DynamicCache):
        raise InfopruneError(f"YOPO needs a DynamicCache, not a {type(cache).__name__}; give that or none")
