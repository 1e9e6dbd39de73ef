"""Attention as a problem, of both its kernels."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from infoprune_kernels import roofline
from infoprune_kernels.attention import launch_attention
from infoprune_kernels.attention_hopper import launch_attention_hopper
from infoprune_kernels.roofline import Work
from infoprune_kernels.tune.problem import Choice, Problem, Run, random
from infoprune_kernels.work import attention_work


@dataclass(frozen=True)
class Attention(Problem):
    """Images of these lengths in one pack."""

    heads: int
    head_dim: int
    lengths: tuple[int, ...]

    @property
    def kernel(self) -> str:
        return "attention"

    def sizes(self) -> dict[str, int]:
        return {"head_dim": self.head_dim, "heads": self.heads, "tokens": self.tokens}

    def work(self) -> Work:
        return roofline.attention(self.lengths, self.heads, self.head_dim)

    def inputs(self, device: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        q, k, v = (random(device, dtype, self.tokens, self.heads, self.head_dim) for _ in range(3))
        return q, k, v

    def prepare(self, choice: Choice, inputs: tuple[Tensor, ...]) -> Run:
        tile = choice.some_tile
        launch = launch_attention_hopper if choice.kernel == "attention_hopper" else launch_attention
        q, k, v = inputs
        out = q.new_empty(self.tokens, self.heads * self.head_dim)
        work = attention_work(self._bounds(), tile.block_m).to(q.device)

        def run() -> tuple[Tensor, ...]:
            launch(q, k, v, out, work, self.head_dim**-0.5, tile)
            return (out,)

        return run

    def definition(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        parts = (part.split(list(self.lengths)) for part in inputs)
        # One head of one image at a time: all scores of the largest would not fit in memory in float64.
        images = [
            torch.cat([_attend(*(part[:, head] for part in image)) for head in range(self.heads)], 1)
            for image in zip(*parts, strict=True)
        ]
        return (torch.cat(images),)

    def compiled_alike(self) -> Problem:
        return replace(self, tokens=1, lengths=(1,))

    def _bounds(self) -> Tensor:
        return torch.tensor([0, *self.lengths]).cumsum(0)

    def __str__(self) -> str:
        return super().__str__() + (f" in {len(self.lengths)} images" if len(self.lengths) > 1 else "")


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # L x D each
    return F.scaled_dot_product_attention(q[None, None], k[None, None], v[None, None])[0, 0]
