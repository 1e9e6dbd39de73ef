"""compute-sanitizer on the kernels: how it is found and called, and what its words mean."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from infoprune_rt.benchmarking.gpu.verdict import Verdict

DONE = "every kernel ran"  # the sanitized script's last line
_OWN = "========="  # what the tool's own lines begin with
# How lines begin by which the tool says that it cannot work on this machine; nothing is known about the kernels then.
_REFUSAL = re.compile(
    r"Internal Sanitizer Error|"
    r"(Error: )?(Device not supported|Unable to (connect|find)|Failed to initialize|Insufficient permissions)|"
    r"Error: .* (is|are) not supported"
)
_UNSEEN = re.compile("Error: Target application terminated before first instrumented API call")
_FINDING = re.compile(r"Invalid |(Error: |Warning: )?Race reported|Error: Race|Uninitialized |Leaked |Program hit ")
_SUMMARY = re.compile(r"^(?:ERROR|RACECHECK) SUMMARY: (\d+) (?:error|hazard)")


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
    """What a run says: clean, something found, or that the tool does not work here.

    Only the tool's own lines are asked; the script's may hold any words. Its refusals stand in its error count, one
    each: what is counted beyond them was found, and goes before any refusal.
    """
    lines = [line.strip() for line in output.splitlines() if line.strip("= \t")]
    own = [line.removeprefix(_OWN).strip() for line in lines if line.startswith(_OWN)]
    counts = [int(count) for line in own for count in _SUMMARY.findall(line)]
    refusals = list(filter(_REFUSAL.match, own))
    first = next(filter(_FINDING.match, own), None)
    if first or sum(counts) > len(refusals):
        return Verdict("failed", f"{max(sum(counts), 1)} found, the first: {(first or _last(lines))[:200]}")
    if DONE in lines:  # it saw nothing of a script that ran; one that did not fell by itself
        refusals += filter(_UNSEEN.match, own)
    if refusals:
        return Verdict("not available", f"compute-sanitizer says: {refusals[0][:200]}")
    if counts and status == 0 and DONE in lines:
        return Verdict("passed", "nothing found")
    return Verdict("failed", f"no clean end (status {status}): {_last(lines)[:200]}")


def _last(lines: list[str]) -> str:
    return lines[-1].removeprefix(_OWN).strip() if lines else "nothing was said"
