"""Physical compaction of one block: heads sliced out, tensors under the compact block's names."""

from __future__ import annotations

import torch
from torch import Tensor

from infoprune_rt.plan import BlockPlan
from infoprune_rt.pruning.ffn_forms import FFNFit
from infoprune_rt.pruning.moments import Twin
from infoprune_rt.pruning.output_refit import refit_output
from infoprune_rt.towers.base import SourceBlock, TowerAdapter, layer_state


def slice_attention(adapter: TowerAdapter, block: SourceBlock, plan: BlockPlan) -> dict[str, Tensor]:
    """The kept heads' weights: ``norm1``, ``qkv`` (3 h D x d), ``out`` (d x h D), zeta folded in.

    Exact: the result acts as the dense attention whose other heads are multiplied by zero. A block
    without heads keeps its output bias alone.
    """
    state = adapter.attention_state(block, plan.heads)
    if not plan.heads:
        return {"out.bias": state["out.bias"]}
    return state | {"out.weight": _scaled(state["out.weight"], plan.zeta)}


def refitted(attention: dict[str, Tensor], moments: Twin) -> dict[str, Tensor]:
    """The same attention with its output projection (or its lone bias) solved again."""
    bias = attention["out.bias"]
    weight = attention.get("out.weight", bias.new_empty(len(bias), 0))
    solved, offset = refit_output(moments, weight)
    changed = {"out.weight": solved, "out.bias": offset}
    return attention | {name: tensor for name, tensor in changed.items() if name in attention}


def pack(block: SourceBlock, attention: dict[str, Tensor], ffn: FFNFit) -> dict[str, Tensor]:
    """One compact block's state: copies, sharing no memory with the tower."""
    state = (
        attention | layer_state("norm2", block.norm2) | {f"ffn.{name}": tensor for name, tensor in ffn.tensors.items()}
    )
    return {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}


def _scaled(weight: Tensor, zeta: tuple[float, ...] | None) -> Tensor:
    if zeta is None:
        return weight
    factor = weight.new_tensor(zeta, dtype=torch.float32).repeat_interleave(weight.shape[1] // len(zeta))
    return (weight.float() * factor).to(weight.dtype)
