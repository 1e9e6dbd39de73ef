"""A kernel at one size: random inputs, the launch with a tile, and PyTorch's operators to check it against."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from infoprune_kernels.configs import Tile
from infoprune_kernels.roofline import Work

Run = Callable[[], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Choice:
    """A kernel with a tile; of ``ffn_lowrank`` also without one: two products."""

    kernel: str
    tile: Tile | None

    @property
    def some_tile(self) -> Tile:
        """Of a choice that has one."""
        assert self.tile is not None
        return self.tile

    def __str__(self) -> str:
        """As it stands in lines and tables."""
        return f"{self.kernel}, {self.tile or 'two products'}"


@dataclass(frozen=True)
class Problem(ABC):
    """One kernel's work at one size: tokens, and what its subclass adds."""

    tokens: int

    @property
    @abstractmethod
    def kernel(self) -> str:
        """Whose rules it decides."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """As the kernel's rules name them, those that rules are cut by first."""

    @abstractmethod
    def work(self) -> Work:
        """FLOPs, bytes and exponentials."""

    @abstractmethod
    def inputs(self, device: str, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Fresh random ones."""

    @abstractmethod
    def prepare(self, choice: Choice, inputs: tuple[Tensor, ...]) -> Run:
        """What launches the kernel; what the host does before is done here."""

    @abstractmethod
    def definition(self, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The results by PyTorch's operators, in the inputs' dtype."""

    def compiled_alike(self) -> Problem:
        """The problem whose kernels are compiled in the place of this one's: kernels are not compiled for tokens."""
        return replace(self, tokens=1)

    def __str__(self) -> str:
        """As it stands in lines and tables."""
        return f"{self.kernel}, " + ", ".join(f"{name} {size}" for name, size in self.sizes().items())


def random(device: str, dtype: torch.dtype, *sizes: int, scale: float = 1.0) -> Tensor:
    """Normally distributed; zeros would draw less power, and run faster."""
    return torch.randn(sizes, device=device, dtype=dtype) * scale
