"""The GPU kernels' results against the operators' definitions."""

from __future__ import annotations

from typing import Any

import infoprune_kernels
import torch
from operator_cases import DEFINITIONS, cast, outputs, split
from torch import Tensor

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


def assert_close(mine: tuple[Tensor, ...], theirs: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> None:
    """The same of results that are already there."""
    for ours, torch_made, truth in zip(mine, theirs, exact, strict=True):
        assert ours.dtype == torch_made.dtype
        assert ours.shape == truth.shape
        if truth.numel():
            # One rounding of the largest value; of few values PyTorch's may all be close by luck, so that it is two.
            rounding = (1 if truth.numel() > 256 else 2) * torch.finfo(ours.dtype).eps * truth.abs().max()
            assert (ours - truth).abs().max() <= 2 * (torch_made - truth).abs().max() + rounding
