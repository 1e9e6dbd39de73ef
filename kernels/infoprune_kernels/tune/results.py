"""What tuning leaves behind: the device's table, the times it was decided by, and a table to read."""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import triton

from infoprune_kernels.configs import ConfigTable
from infoprune_kernels.roofline import CHIPS
from infoprune_kernels.tune.measure import Dropped, Timed
from infoprune_kernels.tune.plan import chosen

_ASKED = ("driver_version", "clocks.max.sm", "clocks.max.mem", "power.limit")


@dataclass(frozen=True)
class Device:
    """The one at hand: its full name, and what tables are made of."""

    name: str
    arch: int
    shared_bytes: int
    uuid: str

    @property
    def slug(self) -> str:
        """The name of its files.

        >>> Device("NVIDIA H100 80GB HBM3", 90, 232448, "").slug
        'nvidia_h100_80gb_hbm3'
        """
        return re.sub(r"[^a-z0-9]+", "_", self.name.lower()).strip("_")


def device_at_hand() -> Device:
    """The current CUDA device.

    Raises:
        ValueError: there is none, it is older than Ampere, or Triton interprets kernels in this process.
    """
    if triton.knobs.runtime.interpret:
        raise ValueError("TRITON_INTERPRET is set: interpreted kernels have no times; unset it")
    if not torch.cuda.is_available():
        raise ValueError("no CUDA device is at hand: tiles are timed on the device that they are for")
    index = torch.cuda.current_device()
    found = torch.cuda.get_device_properties(index)
    oldest(found.name, found.major, found.minor)
    shared_bytes = triton.runtime.driver.active.utils.get_device_properties(index)["max_shared_mem"]
    return Device(found.name, 10 * found.major + found.minor, shared_bytes, f"GPU-{found.uuid}")


def oldest(name: str, major: int, minor: int) -> None:
    """Refuses what is older than Ampere.

    Raises:
        ValueError: it is.
    """
    if (major, minor) < (8, 0):
        raise ValueError(f"{name} has compute capability {major}.{minor}; the kernels need 8.0 at least")


def clocks_and_driver(device: Device) -> dict[str, str]:
    """The highest clocks, as nvidia-smi tells them; empty where it does not. What runs is not at them all the time."""
    command = ["nvidia-smi", f"--id={device.uuid}", f"--query-gpu={','.join(_ASKED)}", "--format=csv,noheader"]
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=5).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(_ASKED, (part.strip() for part in told.split(",")), strict=False))


def check_writable(path: Path) -> None:
    """Before anything is measured.

    Raises:
        ValueError: a file cannot be written there.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"{path.parent} cannot be written ({error.strerror}): no place for {path.name}") from error


def write_json(path: Path, document: dict[str, Any]) -> None:
    """Whole or not at all: written aside, then renamed."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    aside = Path(name)
    try:
        with os.fdopen(handle, "w") as file:
            file.write(json.dumps(document, indent=1) + "\n")
            file.flush()
            os.fsync(file.fileno())
        aside.chmod(0o644)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def timing_rows(timed: Sequence[Timed], dropped: Sequence[Dropped]) -> dict[str, Any]:
    """Every time that was taken, in microseconds, and everything that was dropped, with the reason."""
    return {
        "rows": [
            {"problem": asdict(found.problem), "kernel": choice.kernel, "tile": choice.tile and asdict(choice.tile)}
            | {"microseconds": round(time, 3)}
            for found in timed
            for choice, time in found.microseconds.items()
        ],
        "dropped": [
            {"problem": str(each.problem), "choice": None if each.choice is None else str(each.choice)}
            | {"kernel": (each.choice or each.problem).kernel, "reason": each.reason, "wrong": each.wrong}
            for each in dropped
        ],
    }


def summary(table: ConfigTable, timed: Sequence[Timed], device: Device) -> str:
    """A line per problem: what runs it, how long, and how near the floor that is, where the chip is known."""
    chip = next((chip for chip in CHIPS if chip.name in device.name), None)
    lines = [("problem", "tile", "µs", "of the floor's rate")]
    for found in timed:
        choice = chosen(table, found.problem)
        time = found.microseconds.get(choice)
        if time is not None:
            share = f"{1e8 * found.problem.work().floor(chip) / time:.0f} %" if chip else "-"
            lines.append((str(found.problem), str(choice), f"{time:.1f}", share))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
