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
    """Refuse a model whose weights alone do not fit into the memory of ``device``; unknown memory is not judged.

    On a CPU, loading was seen to take hardly more than the weights. What a batch takes comes on top.
    """
    need, free = weight_bytes(directory, device), available_bytes(device)
    if free is not None and need > free:
        raise InfopruneError(
            f"the weights in {directory} need {need / 2**30:.2f} GiB on {device}, but only {free / 2**30:.2f} GiB are "
            "available; free some memory, or take a larger machine or a smaller model"
        )
