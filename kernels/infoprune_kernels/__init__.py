"""The operators as Triton kernels: the arguments of ``torch.ops.infoprune``'s, for float weights.

Needs torch and triton alone. Nothing asks for a device before the first call.
"""

from __future__ import annotations

from infoprune_kernels.attention import attention, attention_work
from infoprune_kernels.ffn_dense import ffn_dense
from infoprune_kernels.ffn_lowrank import ffn_lowrank
from infoprune_kernels.linear_residual import linear_residual
from infoprune_kernels.norm_qkv_rope import norm_qkv_rope

__all__ = ["attention", "attention_work", "ffn_dense", "ffn_lowrank", "linear_residual", "norm_qkv_rope"]
