"""Operators on the GPU's kernels against their definitions in float64, which run beside them."""

from __future__ import annotations

from typing import Any

import torch
from operator_cases import DEFINITIONS, OPS, assert_close, cast, outputs
from torch import Tensor

from infoprune_rt.ops import plain
from infoprune_rt.ops.triton_backend import demanding

DEVICE = torch.device("cuda")
HALVES = (torch.bfloat16, torch.float16)
HEAD_DIMS = (32, 64, 72, 80, 88, 96, 128)


def moved(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """Onto the GPU; sequence bounds stay on the host."""
    return tuple(a.to(DEVICE) if isinstance(a, Tensor) and a.is_floating_point() else a for a in args)


def assert_close_to_definition(name: str, args: tuple[Any, ...], dtype: torch.dtype) -> None:
    """No further from the float64 definition than twice what PyTorch's operators are; another backend is an error."""
    there = moved(cast(args, dtype))
    assert_kernel_close(name, there)


def assert_kernel_close(name: str, there: tuple[Any, ...]) -> None:
    """The same of arguments that are on the GPU."""
    exact = outputs(DEFINITIONS[name](*cast(there, torch.float64)))
    theirs = outputs(getattr(plain, name)(*there))
    with demanding("triton"):
        mine = outputs(getattr(OPS, name)(*there))
    assert all(part.device == there[0].device for part in mine)
    assert_close(mine, theirs, exact)
