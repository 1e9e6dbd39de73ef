"""Which tile sizes a kernel runs with: tables per device in ``configs/*.json``, apart from the kernels.

A table belongs to a compute capability and names its devices. For each kernel it holds rules, and the first whose
limits (``up_to``) are all kept decides; its tile may be null: that kernel is not the one for these sizes. Tables that
were measured say so, name one device in full and tell where their rules come from (``python -m infoprune_kernels.tune``
writes them); the others are resource arithmetic: registers without spills, shared memory within the limit.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
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

    def holds(self, up_to: dict[str, int]) -> bool:
        """Whether all sizes within those limits keep these, too."""
        return all(name in up_to and up_to[name] <= limit for name, limit in self.up_to.items())


@dataclass(frozen=True)
class ConfigTable:
    """The rules of one kind of device, by kernel.

    devices: parts of device names; of a measured table, full names. shared_bytes: what one block may have there.
    provenance: of a measured table, date, command, versions, highest clocks, margin, and what was not measured.
    """

    name: str
    devices: tuple[str, ...]
    arch: int
    shared_bytes: int
    measured: bool
    rules: dict[str, tuple[Rule, ...]]
    provenance: Mapping[str, Any] = field(default_factory=dict)

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
            limits = " or ".join(map(str, self._widest(kernel)))
            raise ValueError(f"{kernel} does not serve {given} on {self.name}: it serves up to {limits}")
        return tile

    def _widest(self, kernel: str) -> list[dict[str, int]]:
        """The limits of its rules that lie within no other's."""
        limits = [rule.up_to for rule in self.rules[kernel] if rule.tile]
        return [one for one in limits if not any(other != one and Rule(other, None).holds(one) for other in limits)]

    def tiles(self, kernel: str, **known: int) -> list[Tile]:
        """The distinct tiles that sizes with these known ones among them may get."""
        found: list[Tile] = []
        for rule in self.rules.get(kernel, ()):
            if all(known[name] <= limit for name, limit in rule.up_to.items() if name in known):
                found += [rule.tile] if rule.tile and rule.tile not in found else []
                if rule.up_to.keys() <= known.keys():
                    break
        return found


def as_json(table: ConfigTable) -> dict[str, Any]:
    """What ``read`` reads; the name is the file's."""
    rules = {
        kernel: [{"up_to": rule.up_to, "tile": rule.tile and _without_none(asdict(rule.tile))} for rule in rows]
        for kernel, rows in table.rules.items()
    }
    head = {name: getattr(table, name) for name in ("devices", "arch", "shared_bytes", "measured", "provenance")}
    return {**head, "kernels": rules}


def _without_none(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if value is not None}


def read(path: Path) -> ConfigTable:
    """A table from its file."""
    found: dict[str, Any] = json.loads(path.read_text())
    rules = {
        kernel: tuple(Rule(row.get("up_to", {}), row["tile"] and Tile(**row["tile"])) for row in rows)
        for kernel, rows in found.pop("kernels").items()
    }
    return ConfigTable(path.stem, tuple(found.pop("devices")), rules=rules, **found)


@cache
def tables() -> tuple[ConfigTable, ...]:
    """All tables that are shipped, those of the least shared memory first."""
    return tuple(sorted(map(read, FOLDER.glob("*.json")), key=lambda table: (table.shared_bytes, table.name)))


def pick(candidates: Iterable[ConfigTable], device: str, shared_bytes: int) -> ConfigTable:
    """The table that was measured on this very device; else that of arithmetic that names it; else the last that fits.

    Raises:
        ValueError: the device has less shared memory than any table asks for.
    """
    fitting = [table for table in candidates if table.shared_bytes <= shared_bytes]
    measured = [table for table in fitting if table.measured and device in table.devices]
    reckoned = [table for table in fitting if not table.measured]
    if measured:
        return measured[-1]
    if not reckoned:
        raise ValueError(f"{device} has {shared_bytes} bytes of shared memory per block; no configuration fits in it")
    return next((t for t in reversed(reckoned) if any(name in device for name in t.devices)), reckoned[-1])


@cache
def table_for(device: torch.device) -> ConfigTable:
    """The table for tensors of this device; on the CPU, where the interpreter runs the kernels, the largest one."""
    if device.type != "cuda":
        return pick(tables(), device.type, sys.maxsize)
    index = torch.cuda.current_device() if device.index is None else device.index
    shared_bytes = triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"]
    return pick(tables(), torch.cuda.get_device_name(index), shared_bytes)
