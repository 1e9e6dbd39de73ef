"""YOPO as released: everything is computed and then masked, on eager attention."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from infoprune_rt.baselines.decoder import Decoder
from infoprune_rt.baselines.eager import eager_attention
from infoprune_rt.baselines.layout import VisualLayout, window
from infoprune_rt.baselines.passes import Passes
from infoprune_rt.baselines.settings import FittedSettings


class AsReleased:
    """Hooks on every layer of a decoder; nothing is skipped, and every layer makes its masks anew.

    Keys that a query must not see get the dtype's lowest number before the softmax, so that what is left sums to 1.
    (The release for LLaVA zeroes weights after it, for dropped heads and behind the cut. Then the pruned keys still
    take their share of the sum, and no execution could skip them.)
    """

    def __init__(self, decoder: Decoder, settings: FittedSettings) -> None:
        self._settings, self._decoder = settings, decoder
        self._window: tuple[VisualLayout, Tensor] | None = None
        self._undo = ExitStack()
        self._undo.enter_context(eager_attention(decoder.text_model))
        self.passes = Passes(decoder, with_frames=settings.radius is not None)
        self._undo.callback(self.passes.remove)
        for index, layer in enumerate(decoder.layers):
            self._hook(layer.self_attn, partial(self._mask_keys, index))
            self._hook(layer.self_attn.o_proj, partial(self._mask_heads, index))
            self._hook(layer.mlp.down_proj, self._mask_neurons)

    def remove(self) -> None:
        """The plain model again."""
        self._undo.close()

    def _hook(self, module: Any, hook: Any) -> None:
        self._undo.callback(module.register_forward_pre_hook(hook, with_kwargs=True).remove)

    def _mask_keys(self, index: int, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The window, heads that do not see, and the cut, all on top of the causal mask [1, 1, queries, keys]."""
        layout = self.passes.remember(kwargs.get("past_key_values"))
        mask = kwargs["attention_mask"].clone()
        lowest = torch.finfo(mask.dtype).min
        if self._settings.radius is not None and self.passes.prompt is not None:
            far = self._far(layout, self._settings.radius)
            mask[:, :, layout.visual[:, None], layout.visual] = mask.new_zeros(far.shape).masked_fill_(far, lowest)
        blind = ~self._live(index, mask.device) if index < self._settings.cut else torch.ones(1, dtype=torch.bool)
        if blind.any():
            is_visual = torch.zeros(mask.shape[-1], dtype=torch.bool, device=mask.device)
            is_visual[layout.visual] = True
            mask = mask.masked_fill(blind.to(mask.device)[:, None, None] & is_visual, lowest)
        return args, {**kwargs, "attention_mask": mask}

    def _mask_heads(self, index: int, _module: nn.Module, args: tuple[Tensor], kwargs: dict[str, Any]) -> Any:
        """Dropped heads give nothing to visual rows."""
        layout, z = self.passes.prompt, args[0]
        if layout is None or all(self._settings.live[index]):
            return None
        z = z.clone()
        z[:, layout.visual] *= self._live(index, z.device).repeat_interleave(self._decoder.shape.head_dim)
        return (z,), kwargs

    def _mask_neurons(self, _module: nn.Module, args: tuple[Tensor], kwargs: dict[str, Any]) -> Any:
        """Neurons behind the prefix give nothing to visual rows."""
        layout, neurons = self.passes.prompt, args[0]
        if layout is None or self._settings.neurons == neurons.shape[-1]:
            return None
        neurons = neurons.clone()
        neurons[:, layout.visual, self._settings.neurons :] = 0
        return (neurons,), kwargs

    def _far(self, layout: VisualLayout, radius: int) -> Tensor:
        """Which visual keys lie outside a visual query's window; made once per prompt, as the release does."""
        if self._window is None or self._window[0] is not layout:
            self._window = (layout, ~window(layout, radius))
        return self._window[1]

    def _live(self, index: int, device: torch.device) -> Tensor:
        return torch.tensor(self._settings.live[index], device=device)
