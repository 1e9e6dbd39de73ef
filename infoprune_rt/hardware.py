"""What this machine computes on, and in which dtype it does so fastest."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from infoprune_rt.errors import InfopruneError

INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "sve")


def auto_device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def named_device(name: str) -> torch.device:
    """The device that a user names: "auto", "cpu", "cuda" or "cuda:1". Raises InfopruneError if it is not there."""
    if name == "auto":
        return auto_device()
    named = re.fullmatch(r"cpu|cuda(?::(\d+))?", name)
    if named is None:
        raise InfopruneError(f"unknown device {name!r}; use auto, cpu, cuda or cuda:N")
    count = torch.cuda.device_count()
    if name != "cpu" and int(named[1] or 0) >= count:
        there = "no GPU that this PyTorch can use" if count == 0 else f"only cuda:0 to cuda:{count - 1}"
        raise InfopruneError(f"device {name!r} is not there: this machine has {there}; use another device, or auto")
    return torch.device(name)


def compute_dtype(stored: torch.dtype, device: torch.device) -> torch.dtype:
    """bfloat16 for half-precision weights where it is computed in hardware, else float32.

    float16 weights become bfloat16 too: gradients through a whole model underflow in float16.
    """
    fast = torch.cuda.is_bf16_supported(including_emulation=False) if device.type == "cuda" else fast_bfloat16()
    return torch.bfloat16 if fast and stored in (torch.float16, torch.bfloat16) else torch.float32


def available_bytes(device: torch.device) -> int | None:
    """Memory that can be had on ``device`` now; None where nothing tells."""
    if device.type == "cuda":
        kept_back = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # PyTorch reuses it
        return torch.cuda.mem_get_info(device)[0] + kept_back
    for line in _proc("meminfo"):
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return None


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
    return _proc("cpuinfo")


def _proc(name: str) -> list[str]:
    path = Path("/proc") / name
    return path.read_text().splitlines() if path.exists() else []
