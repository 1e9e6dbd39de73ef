"""Safetensors written shard by shard, so that a model larger than memory can pass through."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from infoprune_rt.errors import InfopruneError
from infoprune_rt.hub import fetch

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


@dataclass(frozen=True)
class Stored:
    """Where one tensor lies, and what its file's header says of it. dtype: safetensors' name, such as BF16."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def nbytes(self) -> int:
        """What the tensor takes."""
        digits = re.search(r"\d+", self.dtype)  # F8_E4M3 has 8 bits; BOOL, without a number, too
        return math.prod(self.shape) * (int(digits[0]) if digits else 8) // 8


def weight_map(folder: Path, stem: str = STEM) -> dict[str, str]:
    """Which file of ``folder`` holds which tensor. stem: "model" for transformers' own checkpoints."""
    single, index = f"{stem}.safetensors", folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        return _index(index)
    fetch(folder, [single])
    if (folder / single).is_file():
        with _open(folder / single) as file:
            return dict.fromkeys(file.keys(), single)
    pickles = sorted(path.name for suffix in ("bin", "pt", "pth") for path in folder.glob(f"*.{suffix}"))
    found = (
        f"only pickled ones ({pickles[0]}), which are never loaded" if pickles else f"neither {single} nor its index"
    )
    raise InfopruneError(f"{folder} has no safetensors weights, {found}; save the model with save_pretrained first")


def _index(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InfopruneError(f"{path} is not readable JSON: {error}") from error
    places = found.get("weight_map") if isinstance(found, dict) else None
    if not isinstance(places, dict) or not all(isinstance(file, str) for file in places.values()):
        raise InfopruneError(f'{path} has no "weight_map" from tensor names to file names')
    return places


def headers(folder: Path, places: Mapping[str, str]) -> dict[str, Stored]:
    """What the files say of the named tensors, file by file; a hub model's files are fetched if they are not there."""
    fetch(folder, places.values())
    found = {}
    for file_name in sorted(set(places.values())):
        path = folder / file_name
        with _open(path) as file:
            held = set(file.keys())
            for name in (name for name, place in places.items() if place == file_name):
                if name not in held:
                    raise InfopruneError(
                        f"{path} lacks the tensor {name!r} that the index puts there; download the checkpoint again"
                    )
                header = file.get_slice(name)
                found[name] = Stored(path, name, tuple(header.get_shape()), header.get_dtype())
    return found


def read_mapped(place: Stored) -> Tensor:
    """One tensor, backed by its file. The file is mapped anew each time, so that pages read do not add up."""
    with _open(place.path) as file:
        tensor: Tensor = file.get_tensor(place.name)
    return tensor


def iter_tensors(folder: Path, places: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    """The named tensors, file by file, read as they are asked for."""
    return ((name, read_mapped(place)) for name, place in headers(folder, places).items())


def read_tensors(folder: Path, places: Mapping[str, str]) -> dict[str, Tensor]:
    """The named tensors, copied out of their files (a later change of a file cannot reach them)."""
    return {name: tensor.clone() for name, tensor in iter_tensors(folder, places)}


def _open(path: Path) -> Any:
    if not path.is_file():
        raise InfopruneError(f"{path} is missing, but the checkpoint's index names it; download the checkpoint again")
    try:
        return safe_open(path, framework="pt")
    except (OSError, SafetensorError) as error:
        raise InfopruneError(f"{path} is not a whole safetensors file ({error}); download it again") from error
