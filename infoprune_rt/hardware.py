"""What this machine computes on, and in which dtype it does so fastest."""

from __future__ import annotations

from pathlib import Path

import torch

INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "sve")


def auto_device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def compute_dtype(stored: torch.dtype, device: torch.device) -> torch.dtype:
    """bfloat16 for half-precision weights where it is computed in hardware, else float32.

    float16 weights become bfloat16 too: gradients through a whole model underflow in float16.
    """
    fast = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else fast_bfloat16()
    return torch.bfloat16 if fast and stored in (torch.float16, torch.bfloat16) else torch.float32


def instruction_sets() -> list[str]:
    """Those of ``INSTRUCTION_SETS`` that the kernel reports (Linux only; elsewhere none are known)."""
    for line in cpuinfo():
        if line.startswith(("flags", "Features")):
            flags = set(line.split(":", 1)[1].split())
            return [name for name in INSTRUCTION_SETS if name in flags]
    return []


def fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware; elsewhere float32 is faster."""
    return bool({"avx512_bf16", "amx_bf16"} & set(instruction_sets()))


def cpuinfo() -> list[str]:
    """The lines of /proc/cpuinfo; none where there is no such file."""
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
