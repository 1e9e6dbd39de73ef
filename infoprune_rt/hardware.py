"""What this machine computes on, and in which dtype it does so fastest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from infoprune_rt.errors import InfopruneError

INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "sve")

CGROUPS = Path("/sys/fs/cgroup")
# By the controllers that /proc/self/cgroup names (none in version 2): the folder in CGROUPS, the files of limit and
# usage, and what of the usage are files' pages, which the kernel takes back when memory is wanted.
_CGROUP_MEMORY = {
    "": ("", "memory.max", "memory.current", ("inactive_file", "active_file")),
    "memory": (
        "memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
}


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
    """Memory that can be had on ``device`` now, within a container's limits; None where nothing tells."""
    if device.type == "cuda":
        kept_back = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # PyTorch reuses it
        return torch.cuda.mem_get_info(device)[0] + kept_back
    known = [int(line.split()[1]) * 1024 for line in _proc("meminfo") if line.startswith("MemAvailable:")]
    return min([*known, *_cgroup_room()], default=None)


def _cgroup_room() -> Iterator[int]:
    """What each limit on this process's control groups leaves: its own, and those of the groups around it.

    A container sees its own group as the root, whatever name /proc gives it; of that path only what is there counts.
    """
    for line in _proc("self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers not in _CGROUP_MEMORY:
            continue
        root, limit, usage, cached = _CGROUP_MEMORY[controllers]
        group = CGROUPS / root / path.strip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(CGROUPS / root):
                break
            with suppress(OSError, ValueError):  # no such group, or no limit ("max") on it
                statistics = dict(entry.split() for entry in (folder / "memory.stat").read_text().splitlines())
                used = int((folder / usage).read_text()) - sum(int(statistics.get(name, 0)) for name in cached)
                yield max(0, int((folder / limit).read_text()) - used)


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
