"""What a measurement was made on: machine, instruction sets, versions, backends."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from infoprune_rt.hardware import cpuinfo, fast_bfloat16, instruction_sets
from infoprune_rt.runtime.backends import demanded_backend, describe_backends, expected_default

PACKAGES = ("infoprune-rt", "torch", "triton", "transformers", "accelerate", "safetensors", "numpy")


def environment() -> dict[str, Any]:
    """Everything that ``infoprune doctor`` shows and that a result file records."""
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instruction_sets": instruction_sets(),
        "fast_bfloat16": fast_bfloat16(),
        "cuda_devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "versions": {name: _version(name) for name in PACKAGES},
        "backends": describe_backends(),
        "backend_on_the_cpu": demanded_backend() or expected_default(),
    }


def command() -> str:
    """The command line that repeats this run."""
    program = Path(sys.argv[0])
    called = program.name if program.name == "infoprune" else f"python {program.parent.name}/{program.name}"
    return " ".join([called, *sys.argv[1:]])


def _cpu_name() -> str:
    named = [line.split(":", 1)[1].strip() for line in cpuinfo() if line.startswith("model name")]
    return named[0] if named else platform.processor()


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def machine_name() -> str:
    """A folder name for results measured on this CPU: its best instruction set and core count."""
    best = [name for name in ("amx_bf16", "avx512_bf16", "avx512f", "avx2") if name in instruction_sets()]
    return f"cpu-{os.cpu_count()}x-{best[0] if best else platform.machine()}"
