"""What a model's weights will take in memory, by its files' headers alone."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path

import torch

from infoprune_rt import checkpoint
from infoprune_rt.errors import InfopruneError
from infoprune_rt.hardware import available_bytes, compute_dtype
from infoprune_rt.shards import STEM, headers, weight_map
from infoprune_rt.towers.loading import DTYPES


def weight_bytes(directory: Path, device: torch.device) -> int:
    """Bytes of a checkpoint's weights once loaded for ``device``: floating-point ones in the dtype it computes in."""
    stem = STEM if (directory / checkpoint.MANIFEST).is_file() else "model"
    stored = headers(directory, weight_map(directory, stem)).values()
    taken: Counter[str] = Counter()
    for tensor in stored:
        taken[tensor.dtype] += tensor.nbytes
    main = max(DTYPES.keys() & taken.keys(), key=lambda name: taken[name], default="F32")
    itemsize = compute_dtype(DTYPES[main], device).itemsize
    return sum(math.prod(t.shape) * itemsize if t.dtype in DTYPES else t.nbytes for t in stored)


def require_weight_memory(directory: Path, device: torch.device) -> None:
    """Refuse a model whose weights do not fit: in the host's memory, through which they go, or in the device's.

    Loading was seen to take hardly more than that; what a batch takes comes on top and is not judged here. Unknown
    memory is not judged either.
    """
    need = weight_bytes(directory, device)
    for place in {torch.device("cpu"), device}:
        free = available_bytes(place)
        if free is not None and need > free:
            raise InfopruneError(
                f"the weights in {directory} need {need / 2**30:.2f} GiB on {place}, but only {free / 2**30:.2f} GiB "
                "are available; free some memory, or take a larger machine or a smaller model"
            )
