"""What is compiled ahead of time, without a device: a kernel with all that its compilation depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Specimen:
    """One kernel at one configuration.

    signature: Triton's type of every run-time argument ("*bf16", "i32", "fp32"); constexprs: the value of every other
    one; divisible: the arguments that are multiples of 16 at run time (pointers: aligned to 16 bytes), as tensors of
    PyTorch are. config says in words which sizes and which tile these are.
    """

    kernel: str
    config: str
    fn: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    divisible: tuple[str, ...]
    num_warps: int
    num_stages: int
