"""Safetensors written shard by shard, so that a model larger than memory can pass through."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from infoprune_rt.errors import InfopruneError

MAX_SHARD_BYTES = 5 * 10**9
STEM = "infoprune"  # not "model": stock from_pretrained must not find these weights and re-initialise what misfits
INDEX_NAME = f"{STEM}.safetensors.index.json"


def require_space(folder: Path, num_bytes: int) -> None:
    """Refuse before the first byte is written when the disk of ``folder`` (which need not exist yet) is too full."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if num_bytes > free:
        raise InfopruneError(
            f"not enough disk space in {folder.parent}: {num_bytes / 1e9:.2f} GB are needed, {free / 1e9:.2f} GB free"
        )


def _owned(tensor: Tensor) -> Tensor:
    """The tensor on the host, contiguous, and not a view of something larger (safetensors asks for that)."""
    tensor = tensor.detach().cpu().contiguous()
    return tensor if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()


class ShardWriter:
    """Collects tensors and writes a file each time ``MAX_SHARD_BYTES`` would be exceeded."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pending: dict[str, Tensor] = {}
        self._pending_bytes = 0
        self._shards: list[list[str]] = []
        self._total_bytes = 0

    def add(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Append named tensors; a name may appear once only."""
        seen = {name for shard in self._shards for name in shard}
        for name, tensor in tensors:
            if name in seen or name in self._pending:
                raise InfopruneError(f"tensor {name!r} is given twice")
            if self._pending and self._pending_bytes + tensor.nbytes > MAX_SHARD_BYTES:
                self.flush()
            self._pending[name] = _owned(tensor)
            self._pending_bytes += tensor.nbytes

    def flush(self) -> None:
        """End the current shard; the next tensor starts another."""
        if not self._pending:
            return
        try:
            save_file(self._pending, self._part(len(self._shards)), metadata={"format": "pt"})
        except SafetensorError as error:
            raise InfopruneError(
                f"could not write the weights to {self._folder.parent}: {error}; nothing was left behind"
            ) from error
        self._shards.append(list(self._pending))
        self._total_bytes += self._pending_bytes
        self._pending, self._pending_bytes = {}, 0

    def finish(self) -> None:
        """Write what is pending, give the shards their final names and add the index if there are several."""
        self.flush()
        count = len(self._shards)
        weight_map = {}
        for i, names in enumerate(self._shards):
            final = f"{STEM}.safetensors" if count == 1 else f"{STEM}-{i + 1:05d}-of-{count:05d}.safetensors"
            self._part(i).rename(self._folder / final)
            weight_map.update(dict.fromkeys(names, final))
        if count > 1:
            index = {"metadata": {"total_size": self._total_bytes}, "weight_map": weight_map}
            (self._folder / INDEX_NAME).write_text(json.dumps(index, indent=1) + "\n")

    def _part(self, number: int) -> Path:
        return self._folder / f"{number}.part"


def weight_map(folder: Path, stem: str = STEM) -> dict[str, str]:
    """Which file of ``folder`` holds which tensor. stem: "model" for transformers' own checkpoints."""
    single, index = f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if index.exists():
        try:
            return dict(json.loads(index.read_text())["weight_map"])
        except (ValueError, KeyError, TypeError) as error:
            raise InfopruneError(f"{index} is not a readable index of weights: {error}") from error
    with _open(folder / single) as file:
        return dict.fromkeys(file.keys(), single)


def stored_bytes(folder: Path, places: Mapping[str, str]) -> int:
    """How many bytes the named tensors take; only the files' headers are read."""
    total = 0
    for file_name in set(places.values()):
        with _open(folder / file_name) as file:
            slices = [file.get_slice(name) for name in file.keys() if places.get(name) == file_name]  # noqa: SIM118
            total += sum(math.prod(s.get_shape()) * _bits(s.get_dtype()) // 8 for s in slices)
    return total


def _bits(dtype: str) -> int:
    """Width of a safetensors dtype such as BF16, F8_E4M3 or BOOL."""
    digits = re.search(r"\d+", dtype)
    return int(digits[0]) if digits else 8


def iter_tensors(folder: Path, places: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    """The named tensors, file by file, read as they are asked for."""
    for file_name in sorted(set(places.values())):
        with _open(folder / file_name) as file:
            held = set(file.keys())
            for name in (name for name, place in places.items() if place == file_name):
                if name not in held:
                    raise InfopruneError(f"{folder / file_name} lacks the tensor {name!r} that the index puts there")
                yield name, file.get_tensor(name)


def read_tensors(folder: Path, places: Mapping[str, str]) -> dict[str, Tensor]:
    """The named tensors, copied out of their files (a later change of a file cannot reach them)."""
    return {name: tensor.clone() for name, tensor in iter_tensors(folder, places)}


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise InfopruneError(f"{path} is not a readable safetensors file: {error}") from error
