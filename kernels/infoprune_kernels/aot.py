"""Compiles the specimens of every table for its chip, without one, and writes down what the compiler made of them.

``python -m infoprune_kernels.aot`` (``make aot``) does it in this process, which must not interpret kernels.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas, sm_arch_from_capability
from triton.compiler import ASTSource

from infoprune_kernels.attention import specimens as attention
from infoprune_kernels.attention_hopper import specimens as attention_hopper
from infoprune_kernels.configs import ConfigTable, tables
from infoprune_kernels.documents import fill, markdown_table
from infoprune_kernels.ffn_dense import specimens as ffn_dense
from infoprune_kernels.ffn_lowrank import specimens as ffn_lowrank
from infoprune_kernels.linear_residual import specimens as linear_residual
from infoprune_kernels.norm_qkv_rope import specimens as norm_qkv_rope
from infoprune_kernels.specimens import Specimen

OPERATORS = (norm_qkv_rope, attention, attention_hopper, linear_residual, ffn_lowrank, ffn_dense)
TENSOR_CORES = {80: "mma.sync", 89: "mma.sync", 90: "wgmma.mma_async"}
SHARED_LIMIT = {table.arch: table.shared_bytes for table in tables()}


@dataclass(frozen=True)
class Compiled:
    """What one specimen became on one chip; bytes and counts are per program, instructions as PTX names them."""

    kernel: str
    config: str
    arch: str
    registers: int
    spill_bytes: int
    shared_bytes: int
    tensor_core_instructions: int
    async_copies: int
    scalar_16_bit_loads_in_loops: int

    def faults(self) -> list[str]:
        """What must not be in a kernel that is shipped; one sentence each."""
        limit = SHARED_LIMIT[int(self.arch.removeprefix("sm_"))]
        checks = {
            f"spills {self.spill_bytes} bytes": self.spill_bytes > 0,
            f"takes {self.shared_bytes} bytes of shared memory, the limit is {limit}": self.shared_bytes > limit,
            "has no tensor-core instructions of its chip": self.tensor_core_instructions == 0,
            "copies nothing asynchronously": self.async_copies == 0,
            f"loads {self.scalar_16_bit_loads_in_loops} single 16-bit numbers in loops": (
                self.scalar_16_bit_loads_in_loops > 0
            ),
        }
        return [f"{self.kernel} ({self.config}) on {self.arch} {told}" for told, wrong in checks.items() if wrong]


def all_specimens(table: ConfigTable) -> list[Specimen]:
    """Every operator's specimens with the table's tiles."""
    return [specimen for specimens in OPERATORS for specimen in specimens(table)]


def compile_specimen(specimen: Specimen, arch: int) -> Compiled:
    """Compile for a compute capability (80: sm_80) and read the result."""
    attrs = {
        (place,): [["tt.divisibility", 16]]
        for place, name in enumerate(specimen.fn.arg_names)
        if name in specimen.divisible
    }
    constexprs = {(specimen.fn.arg_names.index(name),): value for name, value in specimen.constexprs.items()}
    signature = {name: specimen.signature.get(name, "constexpr") for name in specimen.fn.arg_names}
    made = triton.compile(
        ASTSource(specimen.fn, signature, constexprs, attrs),
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": specimen.num_warps, "num_stages": specimen.num_stages},
    )
    ptx: str = made.asm["ptx"]
    registers, spilled = _registers(ptx, arch)
    return Compiled(
        specimen.kernel,
        specimen.config,
        f"sm_{arch}",
        registers,
        spilled,
        made.metadata.shared,
        ptx.count(TENSOR_CORES[arch]),
        len(re.findall(r"\bcp\.async\.(?:c[ag]|bulk)\.", ptx)),
        sum(bool(_SCALAR_16_BIT.search(line)) for line in _loop_lines(ptx)),
    )


_SCALAR_16_BIT = re.compile(r"\bld\.global(?!\S*\.v\d)\S*\.[bus]16\b")
_LABEL = re.compile(r"^(\$\w+):")
_BRANCH = re.compile(r"\bbra\S*\s+(\$\w+)")


def _loop_lines(ptx: str) -> Iterator[str]:
    """The lines between a label and a branch back to it."""
    lines = ptx.splitlines()
    labels = {match[1]: place for place, line in enumerate(lines) if (match := _LABEL.match(line))}
    loops = [
        (labels[match[1]], place)
        for place, line in enumerate(lines)
        if (match := _BRANCH.search(line)) and labels[match[1]] < place
    ]
    return (line for place, line in enumerate(lines) if any(first < place < last for first, last in loops))


def _registers(ptx: str, arch: int) -> tuple[int, int]:
    """Registers per thread, and bytes spilled (stored and loaded), by the assembler that Triton itself runs."""
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as source:
        source.write(ptx)
        source.flush()
        command = [get_ptxas(arch).path, "-v", "--regAllocOptLevel=2", f"--gpu-name={sm_arch_from_capability(arch)}"]
        told = subprocess.run(
            [*command, source.name, "-o", os.devnull], capture_output=True, text=True, check=True
        ).stderr
    spills = re.findall(r"(\d+) bytes spill", told)
    return max(int(count) for count in re.findall(r"Used (\d+) registers", told)), sum(map(int, spills))


def compile_all() -> Iterator[Compiled]:
    """Every table's specimens for its own chip."""
    for table in tables():
        for specimen in all_specimens(table):
            yield compile_specimen(specimen, table.arch)


def versions() -> dict[str, str]:
    """What the figures depend on beside the kernels."""
    return {"triton": triton.__version__, "ptxas": get_ptxas(80).version}


def main(results: Path, document: Path) -> int:
    """Write the figures to a JSON file and as a table into a document; 1 if a kernel has a fault, which is printed."""
    rows = list(compile_all())
    command = f"python -m infoprune_kernels.aot {results} {document}"
    figures = [asdict(row) for row in rows]
    found = {"command": command, "versions": versions(), "rows": figures}
    results.parent.mkdir(parents=True, exist_ok=True)
    results.write_text(json.dumps(found, indent=1) + "\n")
    fill(document, "aot", markdown_table(figures))
    faults = [fault for row in rows for fault in row.faults()]
    print("\n".join(faults) or f"{len(rows)} kernels compiled, no faults")
    return bool(faults)


if __name__ == "__main__":
    sys.exit(main(*map(Path, sys.argv[1:])))
