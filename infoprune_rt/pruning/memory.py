"""What a plan's fits need, in memory and in the spill directory, computed before anything is done."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from infoprune_rt.errors import InfopruneError
from infoprune_rt.hardware import available_bytes
from infoprune_rt.plan import Plan
from infoprune_rt.pruning.calibration import BlockMoments
from infoprune_rt.pruning.ffn_modes import wants_of

_FIT_COPIES = 6  # matrices as large as the regressors' covariance that a fit holds at its peak
_STREAMS = 3  # the dense stream, the compact stream and Z


@runtime_checkable
class Counted(Protocol):
    """Calibration data that know how large they will be before any of them is made."""

    def rows(self) -> list[int]:
        """Rows of the residual stream, batch by batch."""
        ...


def memory_needed(plan: Plan) -> int:
    """Bytes of moments and working copies that carrying out ``plan`` holds at once, without tower and activations.

    Sequential fits hold one block's moments at a time, others those of all blocks.
    """
    wants = [wants_of(plan, block) for block in plan.blocks]
    moments = [BlockMoments.nbytes(want, plan.shape) for want in wants]
    columns = max(max(want.ffn_columns(plan.shape), want.head_columns(plan.shape)) for want in wants)
    return (max if plan.sequential else sum)(moments) + _FIT_COPIES * 8 * columns**2


def require_memory(plan: Plan, device: torch.device) -> None:
    """Refuse a plan that cannot be fitted in the memory that is free; unknown memory is not judged."""
    need, free = memory_needed(plan), available_bytes(device)
    if free is None or need <= free:
        return
    fitted = sum(wants_of(plan, block).anything for block in plan.blocks)
    remedy = (
        "free some memory or take a larger machine"
        if plan.sequential
        else "fit one block after another (--sequential), or fewer blocks (--dense-block)"
    )
    raise InfopruneError(
        f"fitting {fitted} blocks {'one after another' if plan.sequential else 'at once'} needs about "
        f"{need / 2**30:.1f} GiB on {device}, but only {free / 2**30:.1f} GiB are available; {remedy}"
    )


def spills(plan: Plan) -> bool:
    """Whether carrying out ``plan`` keeps activations on disk."""
    return plan.sequential and any(wants_of(plan, block).anything for block in plan.blocks)


def spill_needed(plan: Plan, rows: Sequence[int], itemsize: int) -> int:
    """Bytes on disk at the peak of a sequential fit. rows: of every batch; itemsize: of the tower's dtype."""
    shape = plan.shape
    per_row = _STREAMS * shape.width * itemsize + 2 * shape.head_dim * 4  # and the rotary tables, float32
    return sum(rows) * per_row + max(rows, default=0) * 2 * shape.width * itemsize  # one batch is written aside


def known_rows(batches: object) -> list[int] | None:
    """The rows of ``Counted`` calibration data; None for others."""
    return batches.rows() if isinstance(batches, Counted) else None


def require_spill_space(plan: Plan, rows: Sequence[int], itemsize: int, directory: Path) -> None:
    """Refuse a sequential fit whose activations the disk of ``directory`` cannot take."""
    need, free = spill_needed(plan, rows, itemsize), shutil.disk_usage(directory).free
    if need > free:
        raise InfopruneError(
            f"the calibration activations need {need / 1e9:.2f} GB of disk, but {directory} has {free / 1e9:.2f} GB "
            "free; choose another place (--spill-dir), use fewer images (--max-images), or --no-sequential"
        )
