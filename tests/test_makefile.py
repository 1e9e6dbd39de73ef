"""What the make targets promise beyond the commands that they list."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("missed", [(), ("tiny_vlm",), ("fullsize_tower",)])
def test_a_missed_target_does_not_keep_other_benchmarks_from_running(tmp_path: Path, missed: tuple[str, ...]) -> None:
    python, stamp, log = tmp_path / "python", tmp_path / "stamp", tmp_path / "log"
    lines = [f'case "$1" in *{name}.py) exit 1;; esac' for name in missed]
    python.write_text("\n".join(["#!/bin/sh", f'echo "$1" >> {log}', *lines, "exit 0\n"]))
    python.chmod(0o755)
    for made in (stamp, tmp_path / "stamp-bench"):  # newer than what they depend on, so that nothing is installed
        made.touch()
        os.utime(made, (2**32, 2**32))
    command = ["make", "-C", str(ROOT), "bench", f"BIN={tmp_path}", f"STAMP={stamp}"]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert sorted(log.read_text().split()) == sorted(f"benchmarks/{path.name}" for path in scripts())
    assert (run.returncode != 0) == bool(missed), run.stderr


def scripts() -> list[Path]:
    """The benchmarks of the CPU; the report only reads what they wrote, and ``make gpu`` runs the others."""
    return [p for p in (ROOT / "benchmarks").glob("*.py") if p.name != "report.py" and not p.name.startswith("gpu")]


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_make_gpu_is_one_call_of_the_machines_own_python(tmp_path: Path) -> None:
    python, log = tmp_path / "python", tmp_path / "log"
    python.write_text(f'#!/bin/sh\necho "$PYTHONPATH $@" > {log}\nexit 3\n')
    python.chmod(0o755)
    command = ["make", "-C", str(ROOT), "gpu", f"PYTHON={python}"]
    run = subprocess.run(command, env=os.environ | {"PYTHONPATH": "/own"}, capture_output=True, text=True, check=False)
    assert log.read_text() == ".:kernels:/own benchmarks/gpu.py\n"
    assert run.returncode != 0
