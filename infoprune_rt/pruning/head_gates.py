"""Learnable importance of every attention head, put into an unmodified tower by hooks.

The gate of head h scales its slice of Z, the input of the attention output projection (method.md section 1).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from infoprune_rt.errors import InfopruneError
from infoprune_rt.towers.base import SourceBlock, TowerAdapter

GateKind = Literal["sigmoid", "hard_concrete"]
GATE_KINDS: tuple[str, ...] = ("sigmoid", "hard_concrete")

# Hard-concrete distribution (Louizos, Welling & Kingma 2018): stretch limits and temperature.
STRETCH = (-0.1, 1.1)
TEMPERATURE = 2 / 3


class HeadGates(nn.Module):
    """One logit per head: ``logits`` [L, H] float32, started at ``init_logit``.

    kind "sigmoid": zeta = sigmoid(logit). kind "hard_concrete": a sigmoid stretched to (-0.1, 1.1) and clamped to
    [0, 1], so that gates can be exactly closed; noise makes it the stochastic gate used in training.
    """

    def __init__(self, num_blocks: int, num_heads: int, *, init_logit: float = 3.0, kind: GateKind = "sigmoid") -> None:
        super().__init__()
        if kind not in GATE_KINDS:
            raise InfopruneError(f"unknown gate {kind!r}; known are {', '.join(GATE_KINDS)}")
        self.kind = kind
        self.logits = nn.Parameter(torch.full((num_blocks, num_heads), float(init_logit)))

    def zeta(self, noise: Tensor | None = None) -> Tensor:
        """Gates [L, H] in [0, 1]. noise: [L, H], uniform on (0, 1), for hard-concrete gates in training."""
        if self.kind == "sigmoid":
            return self.logits.sigmoid()
        return self._stretched(noise).clamp(0, 1)

    def scores(self) -> Tensor:
        """What heads are ranked by, [L, H]: zeta before the clamp, so that fully open heads do not tie.

        Comparing with a threshold in (0, 1] decides as zeta itself would.
        """
        return self.logits.sigmoid() if self.kind == "sigmoid" else self._stretched(None)

    def cost(self) -> Tensor:
        """The budget term: mean zeta, or for hard-concrete gates the expected share of non-zero ones (L0)."""
        if self.kind == "sigmoid":
            return self.zeta().mean()
        low, high = STRETCH
        return (self.logits - TEMPERATURE * math.log(-low / high)).sigmoid().mean()

    def _stretched(self, noise: Tensor | None) -> Tensor:
        low, high = STRETCH
        gate = self.logits.sigmoid()
        if noise is not None:
            gate = ((noise.logit(eps=1e-6) + self.logits) / TEMPERATURE).sigmoid()
        return gate * (high - low) + low


@contextmanager
def gate_heads(blocks: Sequence[SourceBlock], zeta: Tensor | Callable[[], Tensor], head_dim: int) -> Iterator[None]:
    """Scale each head's slice of every output projection's input by ``zeta`` [L, H] until the context ends.

    Nothing in the model is changed but for the hooks. A callable is asked anew at every forward.
    """
    current = zeta if callable(zeta) else lambda: zeta
    _check(blocks, current(), head_dim)
    handles = [block.out_proj.register_forward_pre_hook(_gate(current, i, head_dim)) for i, block in enumerate(blocks)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def mask_heads(blocks: Sequence[SourceBlock], masks: Tensor, head_dim: int) -> AbstractContextManager[None]:
    """The masked model: heads with ``masks`` [L, H] (0/1 or bool) at 0 contribute nothing until the context ends."""
    return gate_heads(blocks, masks.to(torch.float32), head_dim)


@dataclass(frozen=True)
class TowerHeads:
    """The blocks of a model's (unmodified) tower and how their head outputs are divided."""

    blocks: Sequence[SourceBlock]
    num_heads: int
    head_dim: int

    @classmethod
    def of(cls, model: nn.Module, adapter: TowerAdapter) -> TowerHeads:
        """Of a full model, or of a tower alone."""
        tower = adapter.tower_of(model)
        shape = adapter.shape(tower.config)
        return cls(adapter.blocks(tower), shape.num_heads, shape.head_dim)


def _gate(zeta: Callable[[], Tensor], index: int, head_dim: int) -> Callable[[nn.Module, tuple[Any, ...]], Any]:
    def hook(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        z, *rest = args
        scale = zeta()[index].to(device=z.device, dtype=z.dtype).repeat_interleave(head_dim)
        return (z * scale, *rest)

    return hook


def _check(blocks: Sequence[SourceBlock], zeta: Tensor, head_dim: int) -> None:
    widths = [block.out_proj.in_features for block in blocks]
    if zeta.dim() != 2 or zeta.shape[0] != len(blocks) or any(w != zeta.shape[1] * head_dim for w in widths):
        raise InfopruneError(
            f"gates of shape {tuple(zeta.shape)} do not fit a tower of {len(blocks)} blocks whose output projections "
            f"take {sorted(set(widths))} features in heads of {head_dim}; give one row per block, one gate per head"
        )
