"""The tiny VLM's forward pass for training: the same modules as transformers', batched for speed.

All training pictures have one size, so attention is a plain batched product instead of a loop over
images, and the patch embedding is a matrix product. ``tests/demo`` checks the result against the
model's own forward.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen2VLForConditionalGeneration

from infoprune_rt.demo.scenes import COLORS
from infoprune_rt.demo.tiny_batches import BINS, CELLS, MERGE, NOTHING, TinyBatch


class AuxiliaryHeads(nn.Module):
    """Linear read-outs of every merged token, for training only: which digit, colour, x and y."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.sizes = (NOTHING + 1, len(COLORS) + 2, BINS, BINS)
        self.linear = nn.Linear(width, sum(self.sizes))

    def forward(self, merged: Tensor, batch: TinyBatch) -> Tensor:
        """merged: B x 16 x width -> scalar loss."""
        digit, color, x, y = self.linear(merged).float().flatten(0, 1).split(self.sizes, dim=-1)
        # Which digit it is comes last and hardest; tokens without one would drown it.
        weights = torch.tensor([1.0] * NOTHING + [0.1])
        losses = (
            2 * F.cross_entropy(digit, batch.digits.flatten(), weights),
            F.cross_entropy(color, batch.colors.flatten()),
            F.cross_entropy(x, batch.bins[..., 0].flatten(), ignore_index=-100),
            F.cross_entropy(y, batch.bins[..., 1].flatten(), ignore_index=-100),
        )
        return torch.stack(losses).sum()

    def digits(self, merged: Tensor) -> Tensor:
        """The digit read at every merged token, B x 16; NOTHING is not among the choices."""
        scores: Tensor = self.linear(merged)[..., :NOTHING]
        return scores.argmax(-1)


class TinyForward:
    """Holds what does not change between steps: patch positions and their rotary angles."""

    def __init__(self, model: Qwen2VLForConditionalGeneration) -> None:
        self.model = model
        cells = torch.arange(CELLS)
        inner = torch.arange(MERGE)
        h = (cells[:, None, None, None] * MERGE + inner[None, None, :, None]).expand(CELLS, CELLS, MERGE, MERGE)
        w = (cells[None, :, None, None] * MERGE + inner[None, None, None, :]).expand(CELLS, CELLS, MERGE, MERGE)
        positions = torch.stack([h.flatten(), w.flatten()], dim=-1)
        self.vision_cos, self.vision_sin = model.model.visual.rotary_pos_emb(torch.zeros(1), positions)

    def merged_tokens(self, patches: Tensor) -> Tensor:
        """B x 64 x 1176 -> B x 16 x width, the tower with its merger."""
        visual = self.model.model.visual
        weight = visual.patch_embed.proj.weight
        x = F.linear(patches, weight.flatten(1)).to(weight.dtype)  # under autocast the residual stream stays as it is
        for block in visual.blocks:
            x = x + self._attention(block.attn, block.norm1(x))
            x = x + block.mlp(block.norm2(x))
        merged: Tensor = visual.merger(x)
        return merged.to(weight.dtype).view(len(patches), CELLS * CELLS, -1)

    def _attention(self, attn: Any, x: Tensor) -> Tensor:
        size, count, _ = x.shape
        q, k, v = attn.qkv(x).view(size, count, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
        q, k = self._rotate(q), self._rotate(k)
        weights = (q @ k.transpose(-1, -2) * attn.scaling).softmax(-1)
        out: Tensor = attn.proj((weights @ v).transpose(1, 2).reshape(size, count, -1))
        return out

    def _rotate(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        rotated: Tensor = x * self.vision_cos + torch.cat([-second, first], dim=-1) * self.vision_sin
        return rotated

    def text_states(self, merged: Tensor, ids: Tensor, mask: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Hidden states B x LENGTH x width of the packed sequences."""
        text = self.model.model.language_model
        x = text.embed_tokens(ids)
        x = torch.cat([x[:, :1], merged, x[:, 1 + CELLS * CELLS :]], dim=1)
        for layer in text.layers:
            x = layer(x, attention_mask=mask, position_embeddings=(cos, sin))
        states: Tensor = text.norm(x)
        return states


def block_mask(segments: Tensor, dtype: torch.dtype) -> Tensor:
    """B x 1 x L x L additive mask: causal, within the prefix and within each question."""
    length = segments.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    same = segments[:, :, None] == segments[:, None, :]
    visible = causal & (same | (segments[:, None, :] == 0))
    mask = torch.zeros(visible.shape, dtype=dtype).masked_fill(~visible, torch.finfo(dtype).min)
    return mask[:, None]
