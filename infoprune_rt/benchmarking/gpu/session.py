"""``make gpu``: correctness, sanitizer, tuning and benchmarks one after the other, each in a process of its own.

A step that fails, hangs or cannot be had is recorded, and the next one runs. All of it ends within ``SECONDS``.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from infoprune_rt.benchmarking.environment import environment
from infoprune_rt.benchmarking.gpu.budget import Budget
from infoprune_rt.benchmarking.gpu.device import describe, folder_name, processes_may_share
from infoprune_rt.benchmarking.gpu.sanitizer import find_sanitizer, sanitizer_command, sanitizer_verdict
from infoprune_rt.benchmarking.gpu.verdict import Verdict
from infoprune_rt.files import make_directory, write_text

SECONDS = 470.0
GRACE = 20.0  # what a benchmark gets beyond the time it was told: for its imports, and to end by itself
LEAST = 30.0  # seconds under which a step is not begun: it would not get beyond its imports
# Not inherited: they would have other operators run, or interpret kernels.
UNWANTED = ("INFOPRUNE_BACKEND", "TRITON_INTERPRET")
MOST_WORKERS = 6  # of the tests: what takes their time is compiling, on the host

Judge = Callable[[int, str], Verdict]


@dataclass(frozen=True)
class Step:
    """seconds: at most. command: made when it begins, for the time that it gets. judge: of exit status and output.

    absent: why the step cannot be run at all on this machine.
    """

    name: str
    seconds: float
    command: Callable[[float], list[str]]
    judge: Judge
    absent: str | None = None


@dataclass
class Session:
    """The record of a run. root: the repository; results: the device's folder; logs: what the steps printed."""

    root: Path
    results: Path
    logs: Path
    device: torch.device
    steps: list[dict[str, Any]] = field(default_factory=list)
    began: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    def run(self, steps: list[Step], seconds: float, say: Callable[[str], None]) -> bool:
        """Run all steps that there is time for; whether none failed."""
        make_directory(self.results)
        make_directory(self.logs)
        budget, head = Budget(seconds), self._head()
        for number, step in enumerate(steps, 1):
            say(f"[{number}/{len(steps)}] {step.name} (at most {min(step.seconds, budget.left):.0f} s) ...")
            before = budget.left
            verdict = self._verdict(step, budget)
            taken = before - budget.left
            say(f"      {verdict.status} after {taken:.0f} s: {verdict.told}")
            self.steps.append({"name": step.name, **asdict(verdict), "seconds": round(taken, 1)})
            write_text(self.results / "session.json", json.dumps(head | {"steps": self.steps}, indent=1) + "\n")
        return all(step["status"] != "failed" for step in self.steps)

    def _head(self) -> dict[str, Any]:
        return {
            "date": self.began,
            "command": "make gpu",
            "environment": environment() | {"gpu": describe(self.device)},
        }

    def measured(self, name: str) -> dict[str, Any] | None:
        """The result file of a benchmark, if this run wrote one; an earlier run's is not its."""
        path = self.results / f"{name}.json"
        result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"date": ""}
        return result if result["date"] >= self.began else None

    def _verdict(self, step: Step, budget: Budget) -> Verdict:
        if step.absent is not None:
            return Verdict("not available", step.absent)
        seconds = min(step.seconds, budget.left)
        if seconds < LEAST:
            return Verdict("left out", "the time was up")
        try:
            status, output = self._run(step, seconds)
            verdict = step.judge(status, output)
        except subprocess.TimeoutExpired:
            return Verdict("failed", f"ended after {seconds:.0f} s, unfinished; see {self._log(step)}")
        except Exception as error:  # whatever a step may leave behind, the next one runs
            return Verdict("failed", f"{type(error).__name__}: {error}"[:300])
        if verdict.status != "failed":
            return verdict
        return Verdict("failed", f"{verdict.told}; see {self._log(step)}")

    def _run(self, step: Step, seconds: float) -> tuple[int, str]:
        """Exit status and output; what runs longer is killed with all that it started."""
        inherited = {name: value for name, value in os.environ.items() if name not in UNWANTED}
        paths = [str(self.root), str(self.root / "kernels"), os.environ.get("PYTHONPATH", "")]
        own = {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
        log = self._log(step)
        with log.open("w") as output:
            process = subprocess.Popen(
                step.command(seconds - GRACE),
                cwd=self.root,
                env=inherited | own,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            try:
                status = process.wait(seconds)
            finally:
                _end_group(process)
        return status, log.read_text(errors="replace")

    def _log(self, step: Step) -> Path:
        return self.logs / f"{step.name}.log"


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """The step's process and what it started: compilers' workers outlive who started them."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def all_steps(root: Path, device: torch.device, logs: Path) -> list[Step]:
    """Correctness, memory, races, tuning, benchmarks. If all take their longest, the last one has the rest."""
    results, tests = root / "benchmarks" / "results" / folder_name(device), root / "tests" / "gpu"
    junit, python = logs / "correctness.xml", sys.executable
    sanitizer = find_sanitizer()
    absent = None if sanitizer else "compute-sanitizer is neither on PATH nor in CUDA's folder"

    def sanitized(tool: str, seconds: float) -> list[str]:
        return sanitizer_command(sanitizer or "", tool, tests / "sanitized.py")

    def benchmark(name: str, seconds: float) -> list[str]:
        return [python, str(root / "benchmarks" / f"{name}.py"), "--seconds", f"{seconds:.0f}"]

    def tune(seconds: float) -> list[str]:
        return [python, "-m", "infoprune_kernels.tune", "--timings", str(results / "tuning.json")]

    def judge_benchmark(name: str) -> Judge:
        return partial(benchmark_verdict, results / f"{name}.json")

    return [
        Step("correctness", 120, lambda seconds: pytest_command(tests, junit, device), partial(pytest_verdict, junit)),
        Step("memcheck", 40, partial(sanitized, "memcheck"), sanitizer_verdict, absent),
        Step("racecheck", 30, partial(sanitized, "racecheck"), sanitizer_verdict, absent),
        Step("tuning", 160, tune, last_line_verdict),
        Step("gpu_operators", 80, partial(benchmark, "gpu_operators"), judge_benchmark("gpu_operators")),
        Step("gpu_tower", SECONDS, partial(benchmark, "gpu_tower"), judge_benchmark("gpu_tower")),
    ]


def pytest_command(tests: Path, junit: Path, device: torch.device) -> list[str]:
    """Without the options that a development machine's plugins need; side by side where that is possible."""
    options = ["-o", "addopts=", "-q", "--strict-markers", "--tb=short", "-rfE", "-p", "no:cacheprovider"]
    workers = min(MOST_WORKERS, (os.cpu_count() or 1) // 2)
    side_by_side = find_spec("xdist") is not None and workers > 1 and processes_may_share(device)
    shared = ["-n", str(workers)] if side_by_side else []
    return [sys.executable, "-m", "pytest", *options, *shared, f"--junitxml={junit}", str(tests)]


def pytest_verdict(junit: Path, status: int, output: str) -> Verdict:
    """Of pytest's report; no test at all, or only skipped ones, are a failure."""
    if not junit.exists():
        return Verdict("failed", f"pytest ended with status {status} and no report: {last_line(output)}")
    cases = list(ET.parse(junit).getroot().iter("testcase"))
    bad = [
        case.get("name", "?") for case in cases if case.find("failure") is not None or case.find("error") is not None
    ]
    skipped = [case for case in cases if case.find("skipped") is not None]
    passed = len(cases) - len(bad) - len(skipped)
    counts = f"{passed} passed, {len(skipped)} skipped, {len(bad)} failed"
    if bad or not passed or status:
        return Verdict("failed", ": ".join([counts, *([", ".join(bad[:5])] if bad else [])]))
    return Verdict("passed", counts)


def last_line_verdict(status: int, output: str) -> Verdict:
    """Of a program whose last line says what came of it."""
    return Verdict("failed" if status else "passed", last_line(output))


def benchmark_verdict(path: Path, status: int, output: str) -> Verdict:
    """Of a result file; a goal that was missed is a result, not a failure."""
    if status or not path.exists():
        return Verdict("failed", last_line(output))
    result = json.loads(path.read_text())
    goals, rows = result["goals"], result["rows"]
    met = sum(goal["met"] for goal in goals)
    return Verdict("passed", f"{len(rows)} rows, {met} of {len(goals)} goals met, {len(result['left_out'])} left out")


def last_line(output: str) -> str:
    """What a program said last."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    return lines[-1][:300] if lines else "nothing was said"
