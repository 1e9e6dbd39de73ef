"""compute-sanitizer on the kernels: how it is found and called, and what its words mean."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from infoprune_rt.benchmarking.gpu.verdict import Verdict

DONE = "every kernel ran"  # the sanitized script's last line
# It cannot work on this machine; nothing is known about the kernels then.
_REFUSALS = (
    "Device not supported",
    "is not supported",
    "Unable to connect",
    "Unable to find",
    "Failed to initialize",
    "terminated before first instrumented API call",
    "Insufficient permissions",
    "Internal Sanitizer Error",
)
_SUMMARIES = re.compile(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard")


def find_sanitizer() -> str | None:
    """On PATH, or where CUDA's toolkit puts it."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    places = [Path(home, *inside) for home in homes if home for inside in (("bin",), ("compute-sanitizer",))]
    search = os.pathsep.join([os.environ.get("PATH", os.defpath), *map(str, places)])
    return shutil.which("compute-sanitizer", path=search)


def sanitizer_command(program: str, tool: str, script: Path) -> list[str]:
    """tool: memcheck or racecheck. What libraries probe for and do not find is no error of ours, and not reported."""
    options = ["--tool", tool, "--target-processes", "application-only", "--report-api-errors", "no"]
    return [program, *options, sys.executable, str(script)]


def sanitizer_verdict(status: int, output: str) -> Verdict:
    """What a run says: clean, something found, or that the tool does not work here."""
    lines = [line.removeprefix("=========").strip() for line in output.splitlines() if line.strip("= \t")]
    refused = next((line for line in lines if any(word in line for word in _REFUSALS)), None)
    if refused is not None:
        return Verdict("not available", f"compute-sanitizer says: {refused[:200]}")
    counts = [int(errors or hazards) for errors, hazards in _SUMMARIES.findall(output)]
    if any(counts):
        marks = ("Invalid", "Race reported", "Error:", "Program hit", "Uninitialized", "Leaked")
        first = next((line for line in lines if line.startswith(marks)), lines[-1])
        return Verdict("failed", f"{sum(counts)} found, the first: {first[:200]}")
    if counts and status == 0 and DONE in output:
        return Verdict("passed", "nothing found")
    return Verdict("failed", f"no clean end (status {status}): {lines[-1][:200] if lines else 'nothing was said'}")
