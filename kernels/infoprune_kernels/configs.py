"""Which tile sizes a kernel runs with: tables per device in ``configs/*.json``, apart from the kernels.

A table belongs to a compute capability and names its devices. For each kernel it holds rules, and the first whose
limits (``up_to``) are all kept decides; its tile may be null: that kernel is not the one for these sizes. Tables that
were measured say so; the others are resource arithmetic: registers without spills, shared memory within the limit.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import triton

FOLDER = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class Tile:
    """How one kernel cuts its work, and what it is launched with.

    block_m are rows of the output (tokens, queries), block_n its columns (of attention: keys), block_k the step along
    the summed dimension where there is one.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    block_k: int | None = None

    def __str__(self) -> str:
        """As it stands in tables: sizes, warps, stages."""
        sizes = [self.block_m, self.block_n] + ([] if self.block_k is None else [self.block_k])
        return f"{'x'.join(map(str, sizes))}, {self.num_warps} warps, {self.num_stages} stages"


@dataclass(frozen=True)
class Rule:
    """A tile for all sizes within limits (both ends included); None: the kernel does not serve them."""

    up_to: dict[str, int]
    tile: Tile | None

    def serves(self, sizes: dict[str, int]) -> bool:
        """Whether these sizes keep the limits."""
        return all(sizes[name] <= limit for name, limit in self.up_to.items())


@dataclass(frozen=True)
class ConfigTable:
    """The rules of one kind of device, by kernel; shared_bytes is what one block of it may have."""

    name: str
    devices: tuple[str, ...]
    arch: int
    shared_bytes: int
    measured: bool
    rules: dict[str, tuple[Rule, ...]]

    def find(self, kernel: str, **sizes: int) -> Tile | None:
        """The tile for these sizes, or None where the table does not have the kernel serve them."""
        return next((rule.tile for rule in self.rules.get(kernel, ()) if rule.serves(sizes)), None)

    def choose(self, kernel: str, **sizes: int) -> Tile:
        """The tile for these sizes.

        Raises:
            ValueError: the kernel does not serve them.
        """
        tile = self.find(kernel, **sizes)
        if tile is None:
            given = ", ".join(f"{name} {size}" for name, size in sizes.items())
            limits = " or ".join(str(rule.up_to) for rule in self.rules[kernel] if rule.tile)
            raise ValueError(f"{kernel} does not serve {given} on {self.name}: it serves up to {limits}")
        return tile


def _read(path: Path) -> ConfigTable:
    found: dict[str, Any] = json.loads(path.read_text())
    rules = {
        kernel: tuple(Rule(row.get("up_to", {}), row["tile"] and Tile(**row["tile"])) for row in rows)
        for kernel, rows in found.pop("kernels").items()
    }
    return ConfigTable(path.stem, tuple(found.pop("devices")), rules=rules, **found)


@cache
def tables() -> tuple[ConfigTable, ...]:
    """All tables that are shipped, those of the least shared memory first."""
    return tuple(sorted(map(_read, FOLDER.glob("*.json")), key=lambda table: (table.shared_bytes, table.name)))


def pick(candidates: Iterable[ConfigTable], device: str, shared_bytes: int) -> ConfigTable:
    """The table that names the device; else the last one whose shared memory the device has.

    Raises:
        ValueError: the device has less shared memory than any table asks for.
    """
    fitting = [table for table in candidates if table.shared_bytes <= shared_bytes]
    if not fitting:
        raise ValueError(f"{device} has {shared_bytes} bytes of shared memory per block; no configuration fits in it")
    return next((t for t in reversed(fitting) if any(name in device for name in t.devices)), fitting[-1])


@cache
def table_for(device: torch.device) -> ConfigTable:
    """The table for tensors of this device; on the CPU, where the interpreter runs the kernels, the largest one."""
    if device.type != "cuda":
        return tables()[-1]
    index = torch.cuda.current_device() if device.index is None else device.index
    shared_bytes = triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"]
    return pick(tables(), torch.cuda.get_device_name(index), shared_bytes)
