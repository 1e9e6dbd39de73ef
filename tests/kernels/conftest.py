"""Where the GPU kernels' tests run: those of their results in Triton's interpreter, the others as usual.

A process interprets kernels or compiles them, from triton's import on. So the interpreted files are left to sessions
that were started for them: test_interpreter.py starts one, and ``TRITON_INTERPRET=1 pytest tests/kernels`` is another.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator

import pytest
import torch

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
INTERPRETED = [
    "test_attention.py",
    "test_linear_kernels.py",
    "test_ffn_kernels.py",
    "test_work.py",
    "test_tower.py",
    "test_tune_problems.py",
]
COMPILED = ["test_aot.py", "test_interpreter.py", "test_tune.py"]

if importlib.util.find_spec("triton") is None:
    collect_ignore_glob = ["test_*.py"]
else:
    collect_ignore = COMPILED if INTERPRETING else INTERPRETED


@pytest.fixture(autouse=True)
def _poisoned_outputs() -> Iterator[None]:
    """Memory that torch hands out holds NaN, so that what a kernel leaves unwritten is seen."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(2).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)
