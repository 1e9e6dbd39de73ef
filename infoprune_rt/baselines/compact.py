"""YOPO that really skips: what as_released masks is not computed."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from infoprune_rt.baselines.decoder import Decoder
from infoprune_rt.baselines.layout import Band, VisualLayout, bands
from infoprune_rt.baselines.narrow import Heads, Projections, check_sliceable, expanded, narrowed, prefix_ffn, whole
from infoprune_rt.baselines.passes import Passes
from infoprune_rt.baselines.settings import FittedSettings
from infoprune_rt.baselines.visual_attention import attend_causally, attend_in_windows
from infoprune_rt.baselines.visual_cache import VisualCacheLayer, append_text, start_layer
from infoprune_rt.errors import InfopruneError
from infoprune_rt.runtime.seen_weights import SeenWeights

Tables = tuple[Tensor, Tensor]  # cos and sin, [rows, head_dim]


class Compact:
    """Every layer of a decoder gets a forward of its own; the weights stay the model's, but for narrowed heads."""

    def __init__(self, decoder: Decoder, settings: FittedSettings) -> None:
        for layer in decoder.layers:
            check_sliceable(layer)
        windows = _Windows(settings.radius)
        self._undo = ExitStack()
        self.passes = Passes(decoder, with_frames=settings.radius is not None)
        self._undo.callback(self.passes.remove)
        for index, layer in enumerate(decoder.layers):
            layer.forward = _Layer(decoder, settings, index, self.passes, windows).forward
            self._undo.callback(vars(layer).pop, "forward")

    def remove(self) -> None:
        """The plain model again."""
        self._undo.close()


class _Windows:
    """The bands of the prompt under way, made once for all layers."""

    def __init__(self, radius: int | None) -> None:
        self._radius = radius
        self._made: tuple[VisualLayout, list[Band]] | None = None

    def of(self, layout: VisualLayout) -> list[Band] | None:
        """None without a window."""
        if self._radius is None:
            return None
        if self._made is None or self._made[0] is not layout:
            self._made = (layout, bands(layout, self._radius))
        return self._made[1]


class _Layer:
    """One decoder layer. Rows are [rows, d], heads [heads, rows, head_dim]; the batch is one prompt."""

    def __init__(
        self, decoder: Decoder, settings: FittedSettings, index: int, passes: Passes, windows: _Windows
    ) -> None:
        self._decoder, self._shape, self._layer = decoder, decoder.shape, decoder.layers[index]
        self._index, self._passes, self._windows = index, passes, windows
        self._neurons = settings.neurons
        self._sees = index < settings.cut
        self._live = settings.live[index] if self._sees else (False,) * self._shape.heads
        self._slice_weights()

    def forward(
        self, hidden_states: Tensor, *, position_embeddings: Tables, past_key_values: Any = None, **_: Any
    ) -> Tensor:
        """In the place of the layer's own: [1, T, d] to [1, T, d]. Behind the cut visual rows come back as they are."""
        if hidden_states.requires_grad:
            raise InfopruneError("compact YOPO has no gradients; run it under torch.inference_mode(), or as_released")
        rows, tables, cache = hidden_states[0], self._decoder.rotary(position_embeddings), past_key_values
        self._passes.remember(cache)
        layout = self._passes.prompt
        if layout is None:
            return self._text(rows, tables, cache)[None]
        if not self._seen_weights.are_those_of(self._layer):
            self._slice_weights()
        if self._sees:
            return self._prompt(rows, tables, layout, cache)[None]
        nothing = rows.new_empty(0, len(layout.visual), self._shape.head_dim)
        start_layer(cache, self._index, VisualCacheLayer(nothing, nothing, len(layout.visual)))
        text = self._text(rows[layout.text], _at(tables, layout.text), cache)
        return rows.index_copy(0, layout.text, text)[None]

    def _slice_weights(self) -> None:
        attention = self._layer.self_attn
        self._seen_weights = SeenWeights(self._layer)
        self._heads = Heads(self._live, self._shape, attention.q_proj.weight.device)
        self._visual = narrowed(attention, self._heads, self._shape.head_dim) if self._sees else whole(attention)

    def _text(self, rows: Tensor, tables: Tables, cache: Any) -> Tensor:
        """Text rows alone: those that continue a prompt from its cache, or all of a prompt's behind the cut."""
        heads, attention = self._heads, self._layer.self_attn
        q, k, v = self._project(self._layer.input_layernorm(rows), whole(attention), tables)
        k, v = append_text(cache, self._index, k, v)
        out = self._blind(q, k, v)
        if len(heads.live):
            held = cache.layers[self._index]
            keys, values = (
                torch.cat([expanded(visual, heads.seen_of_live), expanded(text, heads.kv_of_live)], dim=1)
                for visual, text in ((held.visual_keys, k), (held.visual_values, v))
            )
            out[heads.live] = attend_causally(q[heads.live], keys, values, attention.scaling)
        rows = rows + attention.o_proj(_flat(out))
        return cast(Tensor, rows + self._layer.mlp(self._layer.post_attention_layernorm(rows)))

    def _prompt(self, rows: Tensor, tables: Tables, layout: VisualLayout, cache: Any) -> Tensor:
        """All rows of a prompt, in a layer that does visual computation."""
        normed = self._layer.input_layernorm(rows)
        attend = self._narrow_attention if len(self._heads.dead) else self._whole_attention
        rows = rows + attend(normed, tables, layout, cache)
        normed = self._layer.post_attention_layernorm(rows)
        if self._neurons == self._shape.ffn_width:
            return cast(Tensor, rows + self._layer.mlp(normed))
        text, visual = self._layer.mlp(normed[layout.text]), normed[layout.visual]
        return rows + _merged(text, prefix_ffn(self._layer.mlp, visual, self._neurons), layout, dim=0)

    def _whole_attention(self, rows: Tensor, tables: Tables, layout: VisualLayout, cache: Any) -> Tensor:
        """With all heads live, text and visual rows go through the same products."""
        q, k, v = self._project(rows, whole(self._layer.self_attn), tables)
        self._store(cache, *(x[:, places] for places in (layout.visual, layout.text) for x in (k, v)))
        return cast(Tensor, self._layer.self_attn.o_proj(_flat(self._see(q, k, v, layout))))

    def _narrow_attention(self, rows: Tensor, tables: Tables, layout: VisualLayout, cache: Any) -> Tensor:
        heads, attention = self._heads, self._layer.self_attn
        text = self._project(rows[layout.text], whole(attention), _at(tables, layout.text))
        visual = self._project(rows[layout.visual], self._visual, _at(tables, layout.visual))
        self._store(cache, *visual[1:], *text[1:])
        kept = (heads.live, heads.kv, heads.kv)
        q, k, v = (_merged(t[some], x, layout, dim=1) for t, x, some in zip(text, visual, kept, strict=True))
        seen = self._see(q, k, v, layout)
        out = self._blind(*text)
        out[heads.live] = seen[:, layout.text]
        seen_rows = F.linear(_flat(seen[:, layout.visual]), *self._visual.o)
        return _merged(attention.o_proj(_flat(out)), seen_rows, layout, dim=0)

    def _blind(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Text queries [H, n, head_dim] of dead heads over text keys; the live heads' places are left unset."""
        heads, out = self._heads, torch.empty_like(q)
        if len(heads.dead):
            keys, values = expanded(k, heads.kv_of_dead), expanded(v, heads.kv_of_dead)
            out[heads.dead] = attend_causally(q[heads.dead], keys, values, self._layer.self_attn.scaling)
        return out

    def _see(self, q: Tensor, k: Tensor, v: Tensor, layout: VisualLayout) -> Tensor:
        """Live heads over all rows of a prompt: q [h, T, head_dim], k and v [g, T, head_dim]."""
        if not len(q):
            return q
        k, v = expanded(k, self._heads.seen_of_live), expanded(v, self._heads.seen_of_live)
        found = self._windows.of(layout)
        if found is None:
            return attend_causally(q, k, v, self._layer.self_attn.scaling)
        return attend_in_windows(q, k, v, self._layer.self_attn.scaling, layout, found)

    def _store(self, cache: Any, visual_k: Tensor, visual_v: Tensor, text_k: Tensor, text_v: Tensor) -> None:
        start_layer(cache, self._index, VisualCacheLayer(visual_k, visual_v, visual_k.shape[1]))
        append_text(cache, self._index, text_k, text_v)

    def _project(self, rows: Tensor, weights: Projections, tables: Tables) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (
            F.linear(rows, *linear).view(len(rows), -1, self._shape.head_dim).transpose(0, 1)
            for linear in (weights.q, weights.k, weights.v)
        )
        return _rotated(q, tables), _rotated(k, tables), v


def _at(tables: Tables, places: Tensor) -> Tables:
    return tables[0][places], tables[1][places]


def _rotated(x: Tensor, tables: Tables) -> Tensor:
    """Rotary positions in the rotate-half form that both architectures have."""
    cos, sin = tables
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def _flat(heads: Tensor) -> Tensor:
    """[heads, rows, head_dim] to [rows, heads * head_dim]."""
    return heads.transpose(0, 1).flatten(1)


def _merged(text: Tensor, visual: Tensor, layout: VisualLayout, dim: int) -> Tensor:
    """Text and visual rows in the prompt's order."""
    shape = list(text.shape)
    shape[dim] = layout.tokens
    both = text.new_empty(shape)
    return both.index_copy_(dim, layout.text, text).index_copy_(dim, layout.visual, visual)
