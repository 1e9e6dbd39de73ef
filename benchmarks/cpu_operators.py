"""The five operators one by one, csrc against PyTorch, bfloat16, at the sizes of a compact 7B block.

Run as a script it writes benchmarks/results/<machine>/cpu_operators.json (pytest-benchmark's format). By hand:
``pytest -o addopts= benchmarks/cpu_operators.py``, with any of pytest-benchmark's options.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor

from infoprune_rt.benchmarking.cpu_tower.measuring import TOLERANCES, relative_error
from infoprune_rt.benchmarking.environment import environment, machine_name
from infoprune_rt.ops.cpu_library import isa, load_library

PATCHES, WIDTH, HEADS, HEAD_DIM, RANK, NEURONS = 1024, 1280, 8, 80, 128, 1280
INNER, EPS = HEADS * HEAD_DIM, 1e-6
Args = tuple[Any, ...]
Run = Callable[[], Tensor]
PLAIN, CPU = torch.ops.infoprune, torch.ops.infoprune_cpu


def weight(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns) * columns**-0.5


def norm_qkv_rope() -> Args:
    angles = torch.randn(PATCHES, HEAD_DIM // 2).repeat(1, 2)
    projection = weight(3 * INNER, WIDTH), torch.randn(3 * INNER)
    return *normed(), *projection, angles.cos(), angles.sin(), HEADS, HEAD_DIM


def attention() -> Args:
    q, k, v = torch.randn(3, PATCHES, HEADS, HEAD_DIM)
    return q, k, v, torch.tensor([0, PATCHES]), HEAD_DIM**-0.5


def linear_residual() -> Args:
    return torch.randn(PATCHES, INNER), weight(WIDTH, INNER), torch.randn(WIDTH), torch.randn(PATCHES, WIDTH)


def ffn_lowrank() -> Args:
    return *normed(), weight(RANK, WIDTH), weight(WIDTH, RANK), torch.randn(WIDTH)


def ffn_dense() -> Args:
    first, second = weight(NEURONS, WIDTH), weight(WIDTH, NEURONS)
    return *normed(), first, torch.randn(NEURONS), second, torch.randn(WIDTH), "quick_gelu"


def normed() -> Args:
    """x, and a norm's weight, bias and epsilon."""
    return torch.randn(PATCHES, WIDTH), torch.randn(WIDTH), torch.randn(WIDTH), EPS


ARGUMENTS = {make.__name__: make for make in (norm_qkv_rope, attention, linear_residual, ffn_lowrank, ffn_dense)}


def lowered(args: Args) -> Args:
    """In bfloat16, but for the rotary tables."""
    return tuple(
        a.bfloat16() if isinstance(a, Tensor) and a.is_floating_point() and a.shape != (PATCHES, HEAD_DIM) else a
        for a in args
    )


def flat(value: Tensor | tuple[Tensor, ...]) -> Tensor:
    """All outputs in one tensor."""
    return torch.cat([part.flatten() for part in value]) if isinstance(value, tuple) else value.flatten()


def csrc(name: str, args: Args) -> Callable[[], Any]:
    """A call of the kernel, weights packed beforehand. It works in place: from call to call the values differ."""
    load_library()
    best = isa()
    if name == "norm_qkv_rope":
        *before, matrix, bias, cos, sin, heads, dim = args
        q, k, v = torch.empty(3, PATCHES, heads, dim, dtype=torch.bfloat16)
        packed = CPU.pack(matrix, 3 * heads, best)
        return lambda: CPU.norm_qkv_rope_(*before, packed, bias, cos, sin, q, k, v, False, best) or (q, k, v)
    if name == "attention":
        q, *rest = args
        return lambda: CPU.attention_(q, *rest, best) or q
    if name == "linear_residual":
        x, matrix, bias, residual = args
        packed = CPU.pack(matrix, 1, best)
        return lambda: CPU.linear_residual_(x, packed, bias, residual, False, best) or residual
    x, *norm = args[:4]
    if name == "ffn_lowrank":
        down, up, bias = args[4:]
        ffn = CPU.pack(down, 1, best), None, RANK, CPU.pack(up, 1, best), bias, "none", 0
    else:
        fc1, fc1_bias, fc2, fc2_bias, activation = args[4:]
        ffn = CPU.pack(fc1, 1, best), fc1_bias, NEURONS, CPU.pack(fc2, 1, best), fc2_bias, activation, 0
    return lambda: CPU.ffn_(x, *norm, *ffn, False, best) or x


@pytest.mark.parametrize("backend", ["plain", "csrc"])
@pytest.mark.parametrize("name", ARGUMENTS)
@torch.inference_mode()
def test_operator(benchmark: BenchmarkFixture, name: str, backend: str) -> None:
    torch.manual_seed(0)
    args = ARGUMENTS[name]()
    exact = flat(getattr(PLAIN, name)(*args))
    args = lowered(args)
    run = csrc(name, args) if backend == "csrc" else lambda: getattr(PLAIN, name)(*args)
    error = relative_error(flat(run()), exact)
    assert error is not None
    assert error <= TOLERANCES["bfloat16"]
    benchmark.group = name
    benchmark.extra_info.update(backend=backend, error=error)
    benchmark(run)


class OurEnvironment:
    """Has the result file say what all result files say of a machine, and not its name."""

    @staticmethod
    def pytest_benchmark_update_machine_info(machine_info: dict[str, Any]) -> None:
        machine_info.clear()
        machine_info.update(environment())


if __name__ == "__main__":
    result = Path(__file__).parent / "results" / machine_name() / "cpu_operators.json"
    result.parent.mkdir(parents=True, exist_ok=True)
    options = ["-o", "addopts=", "-q", "--benchmark-columns=median,iqr,rounds", "--benchmark-name=short"]
    sys.exit(pytest.main([__file__, *options, f"--benchmark-json={result}", *sys.argv[1:]], plugins=[OurEnvironment()]))
