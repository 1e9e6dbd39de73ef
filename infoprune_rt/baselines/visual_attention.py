"""Attention over a prompt's rows as compact YOPO computes it. Everything is [heads, rows, head_dim]."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from infoprune_rt.baselines.layout import Band, VisualLayout


def attend(q: Tensor, k: Tensor, v: Tensor, scale: float, allowed: Tensor | None = None) -> Tensor:
    """Plain attention. allowed: [queries, keys] bool; None: every query sees every key."""
    return F.scaled_dot_product_attention(q[None], k[None], v[None], attn_mask=allowed, scale=scale)[0]


def attend_causally(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The queries' own rows are the last among the keys; each sees itself and all before."""
    queries, keys = q.shape[1], k.shape[1]
    if queries == keys:
        return F.scaled_dot_product_attention(q[None], k[None], v[None], is_causal=True, scale=scale)[0]
    if queries == 1:
        return attend(q, k, v, scale)
    allowed = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril(keys - queries)
    return attend(q, k, v, scale, allowed)


def attend_in_windows(q: Tensor, k: Tensor, v: Tensor, scale: float, layout: VisualLayout, bands: list[Band]) -> Tensor:
    """Text rows see all rows before; visual rows see all text before, and of the visual rows their window.

    All rows of a prompt in order, [heads, T, head_dim].
    """
    out = torch.empty_like(q)
    before = torch.arange(layout.tokens, device=q.device) <= layout.text[:, None]
    out[:, layout.text] = attend(q[:, layout.text], k, v, scale, before)
    seen = torch.empty_like(q[:, layout.visual])
    visual_q, visual_k, visual_v = (x[:, layout.visual] for x in (q, k, v))
    text_k, text_v = k[:, layout.text], v[:, layout.text]
    for band in bands:
        keys = torch.cat([text_k[:, : band.text_keys], visual_k[:, band.keys]], dim=1)
        values = torch.cat([text_v[:, : band.text_keys], visual_v[:, band.keys]], dim=1)
        seen[:, band.queries] = attend(visual_q[:, band.queries], keys, values, scale, band.allowed)
    out[:, layout.visual] = seen
    return out
