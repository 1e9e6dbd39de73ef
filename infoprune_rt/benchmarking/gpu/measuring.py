"""One question, several contenders: each answer is checked, then all that are right are timed in turns."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from infoprune_rt.benchmarking.cpu_tower.measuring import TOLERANCES, relative_error
from infoprune_rt.benchmarking.gpu.timing import Run, Timed, times_in_turns
from infoprune_rt.benchmarking.timing import percentiles

if TYPE_CHECKING:
    from infoprune_kernels.roofline import Chip, Work

Row = dict[str, Any]
DTYPE = torch.bfloat16
TOLERANCE = TOLERANCES["bfloat16"]


@dataclass
class Findings:
    """What a benchmark found.

    rows: what was measured. failures: contenders that raised, ``ours`` telling whose. left_out: what was not tried.
    """

    rows: list[Row] = field(default_factory=list)
    failures: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[dict[str, str]] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether all that is ours ran and answered rightly; what a peer cannot do is told, and no fault of ours."""
        wrong = [row for row in self.rows if row["ours"] and not row["checked"]]
        return bool(self.rows) and not wrong and not any(failure["ours"] for failure in self.failures)

    def leave_out(self, name: str, why: str) -> None:
        """Note what is not measured; an earlier note of that name is replaced."""
        self.take_in(name)
        self.left_out.append({"name": name, "why": why})

    def take_in(self, name: str) -> None:
        """Take the note back."""
        self.left_out = [item for item in self.left_out if item["name"] != name]

    @contextmanager
    def recorded(self, case: Mapping[str, Any], name: str, ours: bool) -> Iterator[None]:
        """Whatever a contender may raise: it is noted, and the rest goes on."""
        try:
            yield
        except Exception as error:
            told = " ".join(f"{type(error).__name__}: {error}".split())
            self.failures.append({**case, "name": name, "ours": ours, "error": told[:500]})


@dataclass(frozen=True)
class Contender:
    """One that is ready to be timed. error: of its answers, by ``relative_error``. more: further columns of its row."""

    timed: Timed
    error: float | None
    ours: bool
    more: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_right(self) -> bool:
        """Guards against a wrong answer; how close kernels come to PyTorch's own rounding is the tests' business."""
        return self.error is not None and self.error <= TOLERANCE


def flat(value: Tensor | tuple[Tensor, ...]) -> Tensor:
    """All outputs of an operator in one row."""
    return torch.cat([part.flatten() for part in value]) if isinstance(value, tuple) else value.flatten()


def largest_error(runs: Sequence[Run], exact: Mapping[int, Tensor]) -> float | None:
    """The largest ``relative_error`` over the inputs whose exact answer is known; None if one is no answer at all."""
    errors = [relative_error(flat(runs[i]()), truth.flatten()) for i, truth in exact.items()]
    return None if None in errors else max(error for error in errors if error is not None)


def rows_of(
    case: Mapping[str, Any], contenders: Mapping[str, Contender], device: torch.device, rounds: int
) -> list[Row]:
    """A row per contender. Who answered wrongly is not timed, so that nothing can be said about its speed."""
    right = {name: contender.timed for name, contender in contenders.items() if contender.is_right}
    times = times_in_turns(right, device, rounds)
    return [
        {
            **case,
            "name": name,
            "ours": contender.ours,
            "dtype": str(DTYPE).removeprefix("torch."),
            "max_error": contender.error,
            "checked": contender.is_right,
            "rounds": rounds if contender.is_right else 0,
            **_microseconds(times.get(name)),
            **contender.more,
        }
        for name, contender in contenders.items()
    ]


def _microseconds(times: list[float] | None) -> dict[str, float | None]:
    found = None if times is None else percentiles(times)
    return {f"{key}_us": None if found is None else 1000 * found[key] for key in ("p50", "p90")}


def with_rates(row: Row, work: Work, chip: Chip | None) -> Row:
    """The row with the rates at which the work was done, the floor on the chip, and the floor's share of the time."""
    floor = None if chip is None else 1e6 * work.floor(chip)
    taken: float | None = row["p50_us"]
    rates = {
        "tflops": None if taken is None else work.flops / taken / 1e6,
        "gb_per_s": None if taken is None else work.bytes / taken / 1e3,
        "floor_us": floor,
        "share_of_floor": None if taken is None or floor is None else floor / taken,
    }
    return row | rates


def free_memory(device: torch.device) -> None:
    """Give back what no one holds, so that the next case finds room."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
