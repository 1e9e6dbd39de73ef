"""Which backend serves a tower, by default and on demand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_cpu_engine import GRIDS, compact_tower, pixels
from torch import Tensor, nn

from infoprune_rt.errors import InfopruneError

HERE = str(Path(__file__).parent)
NO_COMPILER = {"CXX": "/nowhere/at-all"}


def python(code: str, cache: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process that finds this folder's towers and, in ``cache``, what was compiled."""
    code = f"from test_cpu_engine import *\n{code}"
    set_here = {"INFOPRUNE_CACHE": str(cache), "PYTHONPATH": HERE} | variables
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=os.environ | set_here, capture_output=True, text=True, check=False)


def test_nothing_is_compiled_before_a_pass_can_use_it(tmp_path: Path) -> None:
    """A compiler that only says its version: the kernels are to be expected, then cannot be had."""
    compiler = tmp_path / "compiler"
    compiler.write_text('#!/bin/sh\n[ "$1" = --version ] || { echo "error: broken" >&2; echo more >&2; exit 1; }\n')
    compiler.chmod(0o755)
    found = python(
        "tower = compact_tower()\n"
        "tower(pixels(tower), GRIDS)  # may be differentiated\n"
        "with torch.no_grad():\n"
        "    tower.double()(pixels(tower), GRIDS)\n"
        "    print(tower.backend, tower.float().backend)\n"
        "    tower(pixels(tower), GRIDS)\n"
        "print(tower.backend)",
        tmp_path / "cache",
        CXX=str(compiler),
    )
    assert found.stdout.split() == ["plain", "csrc", "plain"], found.stderr
    assert found.stderr.count("compiling") == 1
    assert "did not compile" in found.stderr
    assert "broken" in found.stderr
    assert "more" not in found.stderr  # one line of what the compiler had to say


def test_without_a_compiler_pytorch_serves_after_one_warning(tmp_path: Path) -> None:
    found = python(
        "first, second = compact_tower(), compact_tower()\n"
        "x = pixels(first)\n"
        "with torch.no_grad():\n"
        "    for _ in range(2):\n"
        "        mine = [tower(x, GRIDS).pooler_output for tower in (first, second)]\n"
        "    print(first.backend, first._engine)\n"
        "    first.backend = 'plain'\n"
        "    plain = first(x, GRIDS).pooler_output\n"
        "print(all(torch.equal(out, plain) for out in mine))",
        tmp_path / "cache",
        **NO_COMPILER,
        PYTHONWARNINGS="always",
    )
    assert found.stdout.split() == ["plain", "None", "True"], found.stderr
    warnings = [line for line in found.stderr.splitlines() if "RuntimeWarning" in line]
    assert len(warnings) == 1
    assert "PyTorch's operators run the compact tower" in warnings[0]
    assert "install g++" in warnings[0]
    assert "INFOPRUNE_BACKEND=plain" in warnings[0]
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("variables", "first"), [({}, "tower.backend = 'csrc'"), ({"INFOPRUNE_BACKEND": "csrc"}, "pass")]
)
def test_kernels_that_were_demanded_are_not_replaced(tmp_path: Path, variables: dict[str, str], first: str) -> None:
    found = python(
        f"tower = compact_tower()\n{first}\nwith torch.no_grad():\n    tower(pixels(tower), GRIDS)",
        tmp_path / "cache",
        **NO_COMPILER,
        **variables,
    )
    assert found.returncode
    assert "InfopruneError: no C++ compiler was found" in found.stderr.splitlines()[-1]


def test_plain_that_was_demanded_asks_for_no_kernels(tmp_path: Path) -> None:
    found = python(
        "tower = compact_tower()\nwith torch.no_grad():\n    tower(pixels(tower), GRIDS)\nprint(tower.backend)",
        tmp_path / "cache",
        **NO_COMPILER,
        INFOPRUNE_BACKEND="plain",
    )
    assert (found.stdout, found.stderr) == ("plain\n", "")


@torch.no_grad()
def test_the_kernels_serve_by_default_where_they_can(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("INFOPRUNE_BACKEND", raising=False)
    tower = compact_tower()
    assert tower.backend == "csrc"
    tower(pixels(tower), GRIDS)
    assert tower._engine is not None
    assert tower.to(torch.float64).backend == "plain"  # the kernels do not know it
    assert tower.to(torch.bfloat16).backend == "csrc"


def test_backends_are_chosen_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    tower = compact_tower()
    with pytest.raises(InfopruneError, match="unknown backend 'abacus'; known are plain, csrc"):
        tower.backend = "abacus"
    monkeypatch.setenv("INFOPRUNE_BACKEND", "csrc")
    assert compact_tower().backend == "csrc"
    monkeypatch.setenv("INFOPRUNE_BACKEND", "abacus")
    with pytest.raises(InfopruneError, match="INFOPRUNE_BACKEND: unknown backend"):
        compact_tower()


class Doubled(nn.Linear):
    """As an adapter would stand in a layer's place."""


def _other_class(tower: Any) -> None:
    tower.blocks[0].qkv.__class__ = Doubled


def _other_forward(tower: Any) -> None:
    forward = tower.blocks[0].forward
    tower.blocks[0].forward = lambda *args: forward(*args)


def _compiled(tower: Any) -> None:
    tower.blocks = torch.compile(tower.blocks, backend="eager")


def _compiled_in_place(tower: Any) -> None:
    tower.blocks[1].compile(backend="eager")


@pytest.mark.parametrize("change", [_other_class, _other_forward, _compiled, _compiled_in_place])
@torch.no_grad()
def test_what_was_put_into_the_blocks_is_run(change: Any) -> None:
    """The kernels know the weights alone: whatever else was given to the blocks to do, they would pass over."""
    tower = compact_tower()
    x = pixels(tower)
    tower.backend = "plain"
    expected: Tensor = tower(x, GRIDS).pooler_output
    tower.backend = "csrc"
    change(tower)
    found: Tensor = tower(x, GRIDS).pooler_output  # the layers around the blocks are on the kernels all the same
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert tower._engine is None
