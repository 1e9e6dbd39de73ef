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
    """The benchmarks; the report only reads what they wrote."""
    return [path for path in (ROOT / "benchmarks").glob("*.py") if path.name != "report.py"]
