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
from collections.abc import Callable, Sequence
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

SECONDS = 455.0
GRACE = 20.0  # what a benchmark gets beyond the time it was told: for its imports, and to end by itself
FAREWELL = 8.0  # of a step's time: what it gets, interrupted, to write down what it has before it is killed
LEAST = 30.0  # seconds under which a step is not begun: it would not get beyond its imports
# Not inherited: they would have other operators run, or interpret kernels.
UNWANTED = ("INFOPRUNE_BACKEND", "TRITON_INTERPRET")
MOST_WORKERS = 6  # of the tests: what takes their time is compiling, on the host
INTERRUPTED = 2  # pytest's exit status
ON_TRIAL = ("attention_hopper",)  # kernels that no table has before they were measured

Judge = Callable[[int, str], Verdict]


@dataclass(frozen=True)
class Step:
    """seconds: at most. command: made when it begins, for the time that it gets. judge: of exit status and output.

    absent: why the step cannot be run at all on this machine. reserved: seconds that steps before it leave to it.
    report: a file that the judge reads; an earlier run's is removed before.
    """

    name: str
    seconds: float
    command: Callable[[float], list[str]]
    judge: Judge
    absent: str | None = None
    reserved: float = 0.0
    report: Path | None = None


def allotted(steps: Sequence[Step], left: float) -> float:
    """Seconds that the first of the steps to come gets, out of those left: its longest, but for what is reserved."""
    return max(0.0, min(steps[0].seconds, left - sum(step.reserved for step in steps[1:])))


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
            before = budget.left
            seconds = allotted(steps[number - 1 :], before)
            say(f"[{number}/{len(steps)}] {step.name} (at most {seconds:.0f} s) ...")
            verdict = self._verdict(step, seconds)
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

    def _verdict(self, step: Step, seconds: float) -> Verdict:
        if step.absent is not None:
            return Verdict("not available", step.absent)
        if seconds < LEAST:
            return Verdict("left out", "the time was up")
        in_time = True
        try:
            status, output, in_time = self._run(step, seconds)
            verdict = step.judge(status, output)
        except Exception as error:  # whatever a step may leave behind, the next one runs
            verdict = Verdict("failed", f"{type(error).__name__}: {error}"[:300])
        if in_time and verdict.status != "failed":
            return verdict
        told = verdict.told if in_time else f"ended after {seconds:.0f} s, unfinished: {verdict.told}"
        return Verdict("failed", f"{told}; see {self._log(step)}")

    def _run(self, step: Step, seconds: float) -> tuple[int, str, bool]:
        """Exit status, output, and whether it ended by itself; what runs longer is ended with all that it started."""
        if step.report is not None:
            step.report.unlink(missing_ok=True)
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
                in_time = _ends_within(seconds - FAREWELL, process)
            finally:
                _end_group(process)
        return process.returncode, log.read_text(errors="replace"), in_time

    def _log(self, step: Step) -> Path:
        return self.logs / f"{step.name}.log"


def _ends_within(seconds: float, process: subprocess.Popen[bytes]) -> bool:
    """Whether it does; else it was interrupted, and had the time to write down what it has."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
        return True
    with suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGINT)
        process.wait(FAREWELL)
    return False


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """The step's process and what it started: compilers' workers outlive who started them."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def all_steps(root: Path, device: torch.device, logs: Path) -> list[Step]:
    """Correctness, tuning, benchmarks; memory and races last, in the time that is left.

    What is reserved keeps a slow step from taking the time of those that all the others are for.
    """
    results, tests = root / "benchmarks" / "results" / folder_name(device), root / "tests" / "gpu"
    junit, timings, python = logs / "correctness.xml", results / "tuning.json", sys.executable
    sanitizer = find_sanitizer()
    absent = None if sanitizer else "compute-sanitizer is neither on PATH nor in CUDA's folder"

    def correctness(seconds: float) -> list[str]:
        return pytest_command(tests, junit, device)

    def sanitized(tool: str, seconds: float) -> list[str]:
        return sanitizer_command(sanitizer or "", tool, tests / "sanitized.py")

    def benchmark(name: str, seconds: float) -> list[str]:
        return [python, str(root / "benchmarks" / f"{name}.py"), "--seconds", f"{seconds:.0f}"]

    def tune(seconds: float) -> list[str]:
        return [python, "-m", "infoprune_kernels.tune", "--seconds", f"{seconds:.0f}", "--timings", str(timings)]

    def judge_benchmark(name: str) -> Judge:
        return partial(benchmark_verdict, results / f"{name}.json")

    return [
        Step("correctness", 120, correctness, partial(pytest_verdict, junit), report=junit),
        Step("tuning", 150, tune, partial(tuning_verdict, timings), reserved=100),
        Step("gpu_operators", 80, partial(benchmark, "gpu_operators"), judge_benchmark("gpu_operators"), reserved=60),
        Step("gpu_tower", 150, partial(benchmark, "gpu_tower"), judge_benchmark("gpu_tower"), reserved=150),
        Step("memcheck", 40, partial(sanitized, "memcheck"), sanitizer_verdict, absent),
        Step("racecheck", 40, partial(sanitized, "racecheck"), sanitizer_verdict, absent),
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
    if status == INTERRUPTED:
        counts += ", counting the one that was interrupted as passed"
    if bad or not passed or status:
        return Verdict("failed", ": ".join([counts, *([", ".join(bad[:5])] if bad else [])]))
    return Verdict("passed", counts)


def tuning_verdict(timings: Path, status: int, output: str) -> Verdict:
    """Of the file that tuning writes; a kernel of the tables that was wrong or fell with any tile is a failure."""
    if status:
        return Verdict("failed", last_line(output))
    found = json.loads(timings.read_text())
    wrong = [entry for entry in found["dropped"] if entry["wrong"]]
    bad = [entry for entry in wrong if entry["kernel"] not in ON_TRIAL]
    told = [f"{len(found['dropped'])} tiles dropped, {len(wrong)} of them wrong"]
    told += [f"{len(found['not_measured'])} problems not measured"] if found["not_measured"] else []
    told += ["{choice} on {problem}: {reason}".format(**bad[0])] if bad else []
    told += [f"wrong was only what is on trial, {', '.join(ON_TRIAL)}"] if wrong and not bad else []
    return Verdict("failed" if bad else "passed", "; ".join(told)[:300])


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
