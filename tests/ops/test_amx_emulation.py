"""The AMX kernels on machines without AMX: compiled with their tiles in plain C++, in a process of their own.

Where the machine has AMX, test_cpu_kernels.py runs the real ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from infoprune_rt.ops.cpu_library import load_library

load_library()
SETS = torch.ops.infoprune_cpu.instruction_sets().split(",")


@pytest.mark.skipif("avx512_bf16" not in SETS, reason="all but the tiles needs AVX-512 with bfloat16")
def test_the_kernels_on_emulated_tiles() -> None:
    command = [sys.executable, "-m", "pytest", "-x", str(Path(__file__).with_name("test_cpu_kernels.py"))]
    flags = os.environ.get("INFOPRUNE_CXXFLAGS", "") + " -DINFOPRUNE_EMULATE_AMX"
    environment = os.environ | {"INFOPRUNE_CXXFLAGS": flags, "INFOPRUNE_CPU_ISA": "amx"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
