"""``make gpu``: every step is recorded, none hides the next, and what tools say is read rightly."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from infoprune_rt.benchmarking.gpu import device
from infoprune_rt.benchmarking.gpu.sanitizer import DONE, find_sanitizer, sanitizer_command, sanitizer_verdict
from infoprune_rt.benchmarking.gpu.session import (
    LEAST,
    SECONDS,
    Session,
    Step,
    all_steps,
    allotted,
    benchmark_verdict,
    pytest_verdict,
    tuning_verdict,
)
from infoprune_rt.benchmarking.gpu.show import notes, rows_table, steps_table
from infoprune_rt.benchmarking.gpu.verdict import Verdict

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[2]


def step(name: str, code: str, seconds: float = 60, absent: str | None = None) -> Step:
    def judge(status: int, output: str) -> Verdict:
        return Verdict("failed" if status else "passed", output.strip())

    return Step(name, seconds, lambda left: [sys.executable, "-c", code], judge, absent)


def run(tmp_path: Path, steps: list[Step], seconds: float = 1000) -> tuple[bool, list[tuple[str, str]], list[str]]:
    said: list[str] = []
    session = Session(ROOT, tmp_path / "results", tmp_path / "logs", CPU)
    sound = session.run(steps, seconds, said.append)
    written = json.loads((tmp_path / "results" / "session.json").read_text())["steps"]
    assert written == session.steps
    steps_table(session.steps)
    return sound, [(each["status"], each["told"]) for each in written], said


def test_a_failed_step_does_not_keep_others_from_running(tmp_path: Path) -> None:
    steps = [
        step("bad", "import sys; sys.exit('no')"),
        step("absent", "", absent="there is no such tool"),
        step("good", "print('yes')"),
    ]
    sound, found, said = run(tmp_path, steps)
    assert not sound
    assert found[0] == ("failed", f"no; see {tmp_path / 'logs' / 'bad.log'}")
    assert found[1:] == [("not available", "there is no such tool"), ("passed", "yes")]
    assert len(said) == 6
    assert run(tmp_path, steps[1:])[0]


def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of seconds are begun, and interrupted a second before their end."""
    monkeypatch.setattr("infoprune_rt.benchmarking.gpu.session.LEAST", 0)
    monkeypatch.setattr("infoprune_rt.benchmarking.gpu.session.FAREWELL", 1)


def test_a_step_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    child = "import subprocess, sys; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); p.wait()"
    sound, found, _ = run(tmp_path, [step("hangs", child, seconds=3), step("next", "print('on')")])
    assert not sound
    assert [status for status, _ in found] == ["failed", "passed"]
    assert "unfinished" in found[0][1]
    pid = int((tmp_path / "logs" / "hangs.log").read_text().split()[0])
    for _ in range(100):
        state = Path(f"/proc/{pid}/stat")
        if not state.exists() or state.read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    pytest.fail("its child goes on")


UNFINISHED = """
import pathlib, signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have it ignored
try:
    time.sleep(600)
except KeyboardInterrupt:
    pathlib.Path(sys.argv[1]).write_text("3 passed")
"""


@pytest.mark.parametrize(("code", "told"), [(UNFINISHED, "3 passed"), ("import time; time.sleep(600)", "no report")])
def test_a_step_without_time_tells_what_it_has_and_never_what_an_earlier_one_had(
    code: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hurry(monkeypatch)
    report = tmp_path / "report"
    report.write_text("of an earlier run")

    def judge(status: int, output: str) -> Verdict:
        return Verdict("passed", report.read_text() if report.exists() else "no report")

    slow = Step("slow", 3, lambda left: [sys.executable, "-c", code, str(report)], judge, report=report)
    sound, found, _ = run(tmp_path, [slow])
    assert not sound
    assert found == [("failed", f"ended after 3 s, unfinished: {told}; see {tmp_path / 'logs' / 'slow.log'}")]


def test_an_interrupted_pytest_leaves_its_report(tmp_path: Path) -> None:
    tests, junit, began = tmp_path / "test_slow.py", tmp_path / "junit.xml", tmp_path / "began"
    tests.write_text(
        "import pathlib, signal, time\n"
        "def test_quick():\n    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"def test_slow():\n    pathlib.Path({str(began)!r}).touch()\n    time.sleep(600)\n"
    )
    command = [sys.executable, "-m", "pytest", "-c", os.devnull, "--rootdir", str(tmp_path), f"--junitxml={junit}"]
    process = subprocess.Popen([*command, str(tests)], stdout=subprocess.DEVNULL, start_new_session=True)
    while not began.exists():
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    told = "2 passed, 0 skipped, 0 failed, counting the one that was interrupted as passed"
    assert pytest_verdict(junit, process.wait(60), "") == Verdict("failed", told)


def test_the_time_suffices_for_the_benchmarks_however_slow_the_others_are(tmp_path: Path) -> None:
    """Each step takes all that it may; the towers get what they need, and the whole its time."""
    steps, left, got = all_steps(ROOT, CPU, tmp_path), SECONDS, {}
    for place, each in enumerate(steps):
        got[each.name] = allotted(steps[place:], left)
        left -= got[each.name]
    assert sum(got.values()) <= SECONDS < 8 * 60
    assert got["correctness"] == 120
    assert got["tuning"] >= 100
    assert got["gpu_operators"] >= 60
    assert got["gpu_tower"] >= 150
    assert all(seconds >= LEAST for name, seconds in got.items() if not name.endswith("check"))
    quick = allotted(steps[4:], SECONDS - 80 - 120 - 60 - 120)
    assert quick == 40  # of steps that take what is expected, the sanitizer has its time


def test_what_there_is_no_time_for_is_left_out(tmp_path: Path) -> None:
    assert run(tmp_path, [step("late", "print('no')")], seconds=5) == (
        True,
        [("left out", "the time was up")],
        ["[1/1] late (at most 5 s) ...", "      left out after 0 s: the time was up"],
    )


def test_steps_do_not_inherit_what_would_change_the_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFOPRUNE_BACKEND", "plain")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    code = "import os; print(sorted({'INFOPRUNE_BACKEND', 'TRITON_INTERPRET'} & set(os.environ)))"
    assert run(tmp_path, [step("clean", code)])[1] == [("passed", "[]")]


def test_an_earlier_runs_result_is_not_this_ones(tmp_path: Path) -> None:
    session = Session(ROOT, tmp_path, tmp_path, CPU)
    path = tmp_path / "gpu_tower.json"
    assert session.measured("gpu_tower") is None
    path.write_text(json.dumps({"date": "2020-01-01T00:00:00+00:00"}))
    assert session.measured("gpu_tower") is None
    path.write_text(json.dumps({"date": "2120-01-01T00:00:00+00:00"}))
    assert session.measured("gpu_tower") is not None


def test_the_steps_and_their_commands(tmp_path: Path) -> None:
    steps = {each.name: each for each in all_steps(ROOT, CPU, tmp_path)}
    assert list(steps) == ["correctness", "tuning", "gpu_operators", "gpu_tower", "memcheck", "racecheck"]
    for each in steps.values():
        script = next(word for word in each.command(33) if word.startswith(str(ROOT)) or word.startswith("infoprune_"))
        assert script == "infoprune_kernels.tune" or Path(script).exists()
    assert steps["gpu_tower"].command(33.4)[-2:] == ["--seconds", "33"]
    assert steps["tuning"].command(33.4)[3:5] == ["--seconds", "33"]
    report = steps["correctness"].report
    assert f"--junitxml={report}" in steps["correctness"].command(33)


JUNIT = '<testsuites><testsuite><testcase name="a"/><testcase name="b">{}</testcase></testsuite></testsuites>'


@pytest.mark.parametrize(
    ("content", "status", "verdict"),
    [
        (JUNIT.format(""), 0, Verdict("passed", "2 passed, 0 skipped, 0 failed")),
        (JUNIT.format("<skipped/>"), 0, Verdict("passed", "1 passed, 1 skipped, 0 failed")),
        (JUNIT.format("<failure/>"), 1, Verdict("failed", "1 passed, 0 skipped, 1 failed: b")),
        (JUNIT.format("<error/>"), 1, Verdict("failed", "1 passed, 0 skipped, 1 failed: b")),
        ('<testsuites><testcase name="a"><skipped/></testcase></testsuites>', 0,
         Verdict("failed", "0 passed, 1 skipped, 0 failed")),
        (None, 4, Verdict("failed", "pytest ended with status 4 and no report: usage")),
    ],
)  # fmt: skip
def test_pytests_report_is_read(tmp_path: Path, content: str | None, status: int, verdict: Verdict) -> None:
    junit = tmp_path / "junit.xml"
    if content is not None:
        junit.write_text(content)
    assert pytest_verdict(junit, status, "error:\nusage\n") == verdict


def test_a_benchmark_without_goals_met_has_passed_and_one_that_fell_over_has_not(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    assert benchmark_verdict(path, 0, "oops\n") == Verdict("failed", "oops")
    path.write_text(json.dumps({"goals": [{"met": False}], "rows": [1, 2], "left_out": []}))
    assert benchmark_verdict(path, 0, "") == Verdict("passed", "2 rows, 0 of 1 goals met, 0 left out")
    assert benchmark_verdict(path, 1, "wrong\n") == Verdict("failed", "wrong")


def dropped(kernel: str, wrong: bool) -> dict[str, Any]:
    return {"problem": "p", "choice": f"{kernel}, t", "kernel": kernel, "reason": "is wrong", "wrong": wrong}


@pytest.mark.parametrize(
    ("entries", "left", "verdict"),
    [
        ([], [], Verdict("passed", "0 tiles dropped, 0 of them wrong")),
        ([dropped("attention", False)], ["a", "b"],
         Verdict("passed", "1 tiles dropped, 0 of them wrong; 2 problems not measured")),
        ([dropped("attention_hopper", True)], [],
         Verdict("passed", "1 tiles dropped, 1 of them wrong; wrong was only what is on trial, attention_hopper")),
        ([dropped("attention_hopper", True), dropped("attention", True)], [],
         Verdict("failed", "2 tiles dropped, 2 of them wrong; attention, t on p: is wrong")),
    ],
)  # fmt: skip
def test_a_wrong_tile_of_a_kernel_in_use_is_a_failure(
    entries: list[dict[str, Any]], left: list[str], verdict: Verdict, tmp_path: Path
) -> None:
    timings = tmp_path / "tuning.json"
    assert tuning_verdict(timings, 1, "tune: no kernel ran\n") == Verdict("failed", "tune: no kernel ran")
    timings.write_text(json.dumps({"dropped": entries, "not_measured": left}))
    assert tuning_verdict(timings, 0, "") == verdict


CLEAN = f"========= COMPUTE-SANITIZER\nattention\n{DONE}\n========= ERROR SUMMARY: 0 errors\n"
FOUND = (
    "========= COMPUTE-SANITIZER\n========= Invalid __global__ read of size 2 bytes\n"
    "=========     at _attention_kernel+0x3d0\n========= ERROR SUMMARY: 4 errors\n"
)
RACE = (
    "========= COMPUTE-SANITIZER\n"
    "========= Error: Race reported between Write access at k+0x1 and Read access at k+0x2\n"
    f"{DONE}\n========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)\n"
)
REFUSED = (
    "========= COMPUTE-SANITIZER\n========= Error: Device not supported. Please refer to the \"Supported Devices\"\n"
    "RuntimeError: CUDA error: unknown error\n========= ERROR SUMMARY: 1 error\n"
)  # fmt: skip


WRITE = (
    "========= COMPUTE-SANITIZER\n"
    "RuntimeError: this layout is not supported\n"
    "========= Invalid __global__ write of size 2 bytes\n"
    "=========     at _ffn_lowrank_kernel+0x3d0\n========= ERROR SUMMARY: 12 errors\n"
)
RAISED = "========= COMPUTE-SANITIZER\nRuntimeError: Device not supported\n========= ERROR SUMMARY: 0 errors\n"
UNSEEN = "========= Error: Target application terminated before first instrumented API call\n"


@pytest.mark.parametrize(
    ("status", "output", "verdict"),
    [
        (0, CLEAN, Verdict("passed", "nothing found")),
        (1, WRITE, Verdict("failed", "12 found, the first: Invalid __global__ write of size 2 bytes")),
        (1, WRITE.replace("RuntimeError:", "========= Error:"),
         Verdict("failed", "12 found, the first: Invalid __global__ write of size 2 bytes")),
        (1, RAISED, Verdict("failed", "no clean end (status 1): ERROR SUMMARY: 0 errors")),
        (1, f"========= COMPUTE-SANITIZER\n========= Error: Device not supported. x\n{DONE}\n"
         "========= ERROR SUMMARY: 1 error\n", Verdict("not available", "compute-sanitizer says: Error: Device not "
         "supported. x")),
        (1, REFUSED.replace("1 error", "2 errors"), Verdict("failed", "2 found, the first: ERROR SUMMARY: 2 errors")),
        (255, DONE + "\n" + UNSEEN, Verdict("not available", "compute-sanitizer says: Error: Target application "
         "terminated before first instrumented API call")),
        (255, "ModuleNotFoundError: No module named 'x'\n" + UNSEEN, Verdict("failed", "no clean end (status 255): "
         "Error: Target application terminated before first instrumented API call")),
        (0, CLEAN.replace("ERROR SUMMARY: 0 errors", "RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"),
         Verdict("passed", "nothing found")),
        (0, FOUND, Verdict("failed", "4 found, the first: Invalid __global__ read of size 2 bytes")),
        (0, RACE, Verdict("failed", "1 found, the first: Error: Race reported between Write access at k+0x1 and Read "
         "access at k+0x2")),
        (1, REFUSED, Verdict("not available", 'compute-sanitizer says: Error: Device not supported. Please refer to '
         'the "Supported Devices"')),
        (1, CLEAN, Verdict("failed", "no clean end (status 1): ERROR SUMMARY: 0 errors")),
        (0, CLEAN.replace(DONE, ""), Verdict("failed", "no clean end (status 0): ERROR SUMMARY: 0 errors")),
        (0, DONE, Verdict("failed", f"no clean end (status 0): {DONE}")),
        (127, "", Verdict("failed", "no clean end (status 127): nothing was said")),
    ],
)  # fmt: skip
def test_the_sanitizers_words_are_read(status: int, output: str, verdict: Verdict) -> None:
    assert sanitizer_verdict(status, output) == verdict


def test_the_sanitizer_is_found_in_cudas_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    program = tmp_path / "bin" / "compute-sanitizer"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert find_sanitizer() == str(program)
    command = sanitizer_command(str(program), "racecheck", Path("script.py"))
    assert command[:3] == [str(program), "--tool", "racecheck"]
    assert command[-2:] == [sys.executable, "script.py"]


def test_nvidia_smis_words_become_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it prints them, with what it does not know in brackets."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '580.159.03, 1980, 1980, 3201, 41, 121.50, [N/A], Default'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path) + os.pathsep + os.environ["PATH"])
    found = device._by_nvidia_smi("GPU-x")
    assert (found["driver"], found["sm_mhz"], found["power_w"], found["power_limit_w"]) == (
        "580.159.03",
        1980,
        121.5,
        None,
    )
    assert found["compute_mode"] == "Default"


def test_tables_and_notes() -> None:
    row = {"operator": "attention", "patches": 3, "heads": 2, "name": "ours", "p50_us": None, "p90_us": None}
    row |= {"tflops": None, "share_of_floor": None, "max_error": None, "checked": False}
    assert rows_table("x", [row, row | {"p50_us": 1.0, "max_error": 0.1, "checked": True}]).row_count == 2
    mine = {"operator": "attention", "patches": 3, "name": "ours", "ours": True, "error": "RuntimeError: no"}
    result = {
        "failures": [mine, mine | {"name": "cuDNN", "ours": False}],
        "left_out": [{"name": "x", "why": "no time"}],
    }
    result["rows"] = [row | {"name": "SDPA", "ours": False}, row | {"ours": False, "checked": True}]
    assert notes(result) == [
        "left out: x: no time",
        "FAILED: attention, patches 3, cuDNN: RuntimeError: no",
        "WRONG: attention, patches 3, heads 2, SDPA",
        "FAILED: attention, patches 3, ours: RuntimeError: no",
    ]


def test_the_sanitized_script_ends_with_what_is_looked_for() -> None:
    assert (ROOT / "tests/gpu/sanitized.py").read_text().endswith(f'    print("{DONE}")\n')
