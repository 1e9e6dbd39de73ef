"""The operators as Triton kernels: the arguments of ``torch.ops.infoprune``'s, for float weights.

Needs torch and triton alone. Nothing asks for a device before the first call.
"""

from __future__ import annotations

from infoprune_kernels.attention import attention, attention_tile
from infoprune_kernels.ffn_dense import ffn_dense
from infoprune_kernels.ffn_lowrank import ffn_lowrank
from infoprune_kernels.linear_residual import linear_residual
from infoprune_kernels.norm_qkv_rope import norm_qkv_rope
from infoprune_kernels.work import attention_work, padded_work, using_work

__all__ = [
    "attention",
    "attention_tile",
    "attention_work",
    "ffn_dense",
    "ffn_lowrank",
    "linear_residual",
    "norm_qkv_rope",
    "padded_work",
    "using_work",
]
