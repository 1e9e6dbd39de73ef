"""A decoder layer's weights for visual rows: those of the live heads, and a prefix of the FFN."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infoprune_rt.baselines.decoder import DecoderShape
from infoprune_rt.errors import InfopruneError

_LINEARS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj")


class Heads:
    """How one layer's heads fall apart.

    live, dead: query heads, [h] and [H - h]. kv: the KV heads that some live head reads, [g]. kv_of_live, kv_of_dead:
    the KV head that each of them reads, of all; seen_of_live: of ``kv``. Those are for ``expanded``.
    """

    def __init__(self, live: tuple[bool, ...], shape: DecoderShape, device: torch.device) -> None:
        stays = torch.tensor(live, device=device)
        owner = torch.arange(shape.heads, device=device) // shape.group
        self.live, self.dead = stays.nonzero()[:, 0], (~stays).nonzero()[:, 0]
        self.kv, seen_of_live = torch.unique(owner[self.live], return_inverse=True)
        self.seen_of_live = _unless_identity(seen_of_live, len(self.kv))
        self.kv_of_live = _unless_identity(owner[self.live], shape.kv_heads)
        self.kv_of_dead = _unless_identity(owner[self.dead], shape.kv_heads)


def expanded(x: Tensor, index: Tensor | None) -> Tensor:
    """Keys or values [KV heads, rows, head_dim], one for each query head; None: they are already."""
    return x if index is None else x[index]


@dataclass(frozen=True)
class Projections:
    """q, k, v and o of some heads: weights and biases as ``F.linear`` takes them."""

    q: tuple[Tensor, Tensor | None]
    k: tuple[Tensor, Tensor | None]
    v: tuple[Tensor, Tensor | None]
    o: tuple[Tensor, Tensor | None]


def narrowed(attention: Any, heads: Heads, head_dim: int) -> Projections:
    """Copies of the live heads' rows of q, of their KV heads' rows of k and v, and of their columns of o."""

    def rows(linear: nn.Linear, kept: Tensor) -> tuple[Tensor, Tensor | None]:
        places = (kept[:, None] * head_dim + within).flatten()
        weight, bias = linear.weight.detach(), linear.bias
        return weight[places], None if bias is None else bias.detach()[places]

    within = torch.arange(head_dim, device=heads.live.device)
    out = attention.o_proj
    columns = out.weight.detach()[:, (heads.live[:, None] * head_dim + within).flatten()]
    return Projections(
        q=rows(attention.q_proj, heads.live),
        k=rows(attention.k_proj, heads.kv),
        v=rows(attention.v_proj, heads.kv),
        o=(columns, out.bias),
    )


def whole(attention: Any) -> Projections:
    """The layer's own."""
    q, k, v, o = (
        (linear.weight, linear.bias)
        for linear in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    )
    return Projections(q, k, v, o)


def prefix_ffn(mlp: Any, x: Tensor, neurons: int) -> Tensor:
    """The FFN with its first ``neurons`` neurons alone; the weights are views of the layer's own."""
    gate, up = (
        F.linear(x, linear.weight[:neurons], None if linear.bias is None else linear.bias[:neurons])
        for linear in (mlp.gate_proj, mlp.up_proj)
    )
    return F.linear(mlp.act_fn(gate) * up, mlp.down_proj.weight[:, :neurons], mlp.down_proj.bias)


def check_sliceable(layer: nn.Module) -> None:
    """InfopruneError unless the layer's products are plain ``nn.Linear`` that nobody has wrapped."""
    for name in _LINEARS:
        kind = type(layer.get_submodule(name))
        if kind is not nn.Linear:
            raise InfopruneError(
                f"compact slices weights, but {name} is a {kind.__name__}, not an nn.Linear; merge adapters into the "
                "model and load it unquantised, or use as_released"
            )
    if "forward" in vars(layer):
        raise InfopruneError(
            "another library has replaced the decoder layers' forward (accelerate does so for a device map); load the "
            "model onto one device, or use as_released"
        )


def _unless_identity(index: Tensor, size: int) -> Tensor | None:
    return None if index.tolist() == list(range(size)) else index
