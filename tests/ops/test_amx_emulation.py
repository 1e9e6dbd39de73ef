"""The AMX kernels on machines without AMX: compiled with their tiles in plain C++, in a process of their own.

Where the machine has AMX, test_cpu_kernels.py runs the real ones.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from infoprune_rt.ops.cpu_library import FLAGS, SOURCES, load_library

load_library()
SETS = torch.ops.infoprune_cpu.instruction_sets().split(",")


@pytest.mark.skipif(SETS[0] == "portable", reason="an x86-64 compiler is needed")
def test_the_tiles_shapes_are_whole_in_the_real_kernels(tmp_path: Path) -> None:
    """What is emulated is not what runs: a compiler that thought the shapes unread left them out once."""
    made = tmp_path / "amx.o"
    source = SOURCES / "isa_amx.cpp"
    subprocess.run(["g++", *FLAGS, "-c", str(source), "-o", str(made)], check=True)
    row_bytes, rows = struct.pack("<16H", *[64] * 8, *[0] * 8), bytes([16] * 8 + [0] * 8)
    assert bytes([1, *[0] * 15]) + row_bytes + rows in made.read_bytes()


@pytest.mark.skipif("avx512_bf16" not in SETS, reason="all but the tiles needs AVX-512 with bfloat16")
def test_the_kernels_on_emulated_tiles() -> None:
    command = [sys.executable, "-m", "pytest", "-x", str(Path(__file__).with_name("test_cpu_kernels.py"))]
    flags = os.environ.get("INFOPRUNE_CXXFLAGS", "") + " -DINFOPRUNE_EMULATE_AMX"
    environment = os.environ | {"INFOPRUNE_CXXFLAGS": flags, "INFOPRUNE_CPU_ISA": "amx"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
