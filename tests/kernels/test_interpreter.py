"""Starts the session in which Triton's interpreter runs the kernels; what fails in it is shown below this test."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from conftest import INTERPRETED

HERE = Path(__file__).parent


def test_the_kernels_in_the_interpreter() -> None:
    files = [str(HERE / name) for name in INTERPRETED]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *files]
    run = subprocess.run(command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    print(run.stdout, run.stderr)
    assert not run.returncode
