"""The rows of Table 1: what is pruned, how it is carried out, and what runs it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Tower = Literal["dense", "accelerated", "masked", "plain", "compiled", "kernels"]
Yopo = Literal["as_released", "compact"]
DENSE, YOPO, OURS, BOTH = "dense", "YOPO", "InfoPrune", "InfoPrune + YOPO"


@dataclass(frozen=True)
class Method:
    """One row. tower: which of a subject's towers stands in the model; yopo: how the language model skips, if it does.

    attention: transformers' implementation, of the language model and of its own towers; YOPO as released switches the
    decoder, and nothing else, to eager by itself. reference: the row that computes the same function in PyTorch, by
    whose error this one is judged.
    """

    name: str
    execution: str
    engine: str
    tower: Tower
    attention: Literal["eager", "sdpa"] = "sdpa"
    yopo: Yopo | None = None
    reference: str | None = None

    @property
    def key(self) -> str:
        """Names the row within one workload."""
        return f"{self.name}, {self.execution}, {self.engine}"

    @property
    def structure(self) -> tuple[str, str | None]:
        """Rows that agree in it do the same products."""
        small = self.tower in ("plain", "compiled", "kernels")
        return "compact" if small else "masked" if self.tower == "masked" else "dense", self.yopo


def methods(kernels: str) -> tuple[Method, ...]:
    """All rows; kernels: the name of our backend for the device ("csrc", "triton").

    References come before the rows that are judged by them.
    """
    dense = Method(DENSE, "whole", "sdpa", "dense")
    released = Method(YOPO, "as released", "eager decoder", "dense", yopo="as_released")
    masked = Method(OURS, "masked", "sdpa", "masked")
    both_masked = Method(BOTH, "masked", "eager decoder", "masked", yopo="as_released")
    return (
        dense,
        Method(DENSE, "whole", "eager", "dense", "eager", reference=dense.key),
        Method(DENSE, "whole", kernels, "accelerated", reference=dense.key),
        released,
        Method(YOPO, "compact", "sdpa", "dense", yopo="compact", reference=released.key),
        masked,
        Method(OURS, "compact", "plain PyTorch", "plain", reference=masked.key),
        Method(OURS, "compact", "torch.compile", "compiled", reference=masked.key),
        Method(OURS, "compact", kernels, "kernels", reference=masked.key),
        both_masked,
        Method(BOTH, "compact", kernels, "kernels", yopo="compact", reference=both_masked.key),
    )
