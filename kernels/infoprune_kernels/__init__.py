"""The operators as Triton kernels: the arguments of ``torch.ops.infoprune``'s, for float weights.

Needs torch and triton alone. Nothing asks for a device before the first call.
"""

from __future__ import annotations

from infoprune_kernels.attention import attention, attention_work

__all__ = ["attention", "attention_work"]
