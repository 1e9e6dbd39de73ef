"""Files of a head training run that let it resume exactly: safetensors with their JSON in the header.

One file is one atomic unit: tensors and the numbers that belong to them cannot come from different steps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from infoprune_rt.errors import InfopruneError
from infoprune_rt.files import write_file
from infoprune_rt.towers.base import SourceBlock


def save(path: Path, identity: Mapping[str, Any], tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
    """Write tensors and JSON numbers together. ``identity`` says which run they belong to."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"identity": json.dumps(identity), "numbers": json.dumps(numbers)}

    def fill(aside: Path) -> None:
        try:
            save_file(plain, aside, metadata=header)
        except SafetensorError as error:  # how safetensors tells of a full disk
            raise OSError(str(error)) from error

    write_file(path, fill)


def load(path: Path, identity: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """What ``save`` wrote, on the CPU; None if there is no such file. Another run's file is refused."""
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
        theirs, numbers = json.loads(header["identity"]), json.loads(header["numbers"])
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InfopruneError(f"{path} is damaged ({error}); delete it to train from the start") from error
    _check_same_run(path, theirs, json.loads(json.dumps(identity)))
    return tensors, numbers


def remove_torn(directory: Path, *names: str) -> None:
    """Delete what a killed writer of these files may have left beside them."""
    for name in names:
        for torn in directory.glob(f".{name}.*"):
            torn.unlink(missing_ok=True)


def fingerprint(blocks: Sequence[SourceBlock]) -> str:
    """SHA-256 over the output projections: tells whether a run's files were made with this model."""
    digest = hashlib.sha256()
    for block in blocks:
        weight = block.out_proj.weight.detach().cpu().contiguous()
        digest.update(weight.view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _check_same_run(path: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    for key in sorted(set(theirs) | set(ours)):
        if theirs.get(key) != ours.get(key):
            raise InfopruneError(
                f"{path} belongs to another run: its {key} is {theirs.get(key)!r}, here it is {ours.get(key)!r}; "
                "choose another directory, or delete the old run"
            )
