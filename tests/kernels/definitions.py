"""The GPU kernels' results against the operators' definitions."""

from __future__ import annotations

from typing import Any

import infoprune_kernels
import torch
from operator_cases import DEFINITIONS, assert_close, cast, outputs, split

from infoprune_rt.ops import plain

# What the interpreter computes rightly; bfloat16 it does not.
DTYPES = (torch.float32, torch.float16)


def assert_close_to_definition(name: str, args: tuple[Any, ...]) -> None:
    """No further from the float64 definition than twice what PyTorch's own operators are in this dtype."""
    exact = outputs(DEFINITIONS[name](*cast(args, torch.float64)))
    theirs = outputs(getattr(plain, name)(*args))
    if name != "attention":  # the others' kernels have no scales of int8 weights among their arguments
        before, _, behind = split(name, args)
        args = before + behind
    assert_close(outputs(getattr(infoprune_kernels, name)(*args)), theirs, exact)
