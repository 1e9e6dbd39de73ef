"""Loading a tower alone: from a full model's shards only the tower's tensors are ever read.

Safetensors only; nothing is unpickled. The module is built without memory of its own and takes the tensors over one
by one, so the peak is the tower in the wanted dtype and the largest single tensor.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Collection, Mapping
from functools import reduce
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import AutoConfig, PretrainedConfig

from infoprune_rt.errors import InfopruneError
from infoprune_rt.hub import CONFIG_NAME, resolve_model_dir
from infoprune_rt.shards import Stored, headers, read_mapped, weight_map
from infoprune_rt.towers import ADAPTERS, adapter_for, supported
from infoprune_rt.towers.base import TowerAdapter

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_config(directory: Path) -> PretrainedConfig:
    """The config of a dense checkpoint with a supported tower, full model or tower alone."""
    path = directory / CONFIG_NAME
    raw = _read_json(path)
    model_type = raw.get("model_type")
    if model_type == "infoprune_vlm" or model_type in [a.compact_config_class.model_type for a in ADAPTERS]:
        raise InfopruneError(f"{directory} is a compact checkpoint already; name the dense model that it was made from")
    if model_type not in [name for a in ADAPTERS for name in (*a.vlm_model_types, *a.vision_model_types)]:
        what = "is not supported" if "vision_config" in raw else "is no vision-language model"
        raise InfopruneError(f"{path}: model type {model_type!r} {what}; supported are {supported()}")
    try:
        config: PretrainedConfig = AutoConfig.from_pretrained(directory)
    except (OSError, ValueError, TypeError, KeyError, StrictDataclassError) as error:
        raise InfopruneError(f"{path} is not a sound {model_type} config: {' '.join(str(error).split())}") from error
    adapter_for(config)
    return config


def load_tower(path_or_hub_id: str | Path, *, dtype: torch.dtype | None = None) -> nn.Module:
    """The unmodified transformers tower of a checkpoint, in eval mode on the CPU.

    path_or_hub_id: a directory or hub id in the Hugging Face format, of a full model or of a tower alone.
    dtype: of the parameters; None keeps the stored one. Tensors that are missing, unexpected, of the wrong shape, not
    finite or quantised raise an ``InfopruneError`` that names them.
    """
    directory = resolve_model_dir(path_or_hub_id)
    config = read_config(directory)
    adapter = adapter_for(config)
    vision_config = adapter.vision_config(config)
    tower, stored = _survey(directory, adapter, vision_config)
    dtype = dtype or _common_dtype(stored)
    vision_config.dtype = dtype
    buffers = _buffers(adapter, vision_config)  # before the tensors, whose memory would add to its own
    tower.load_state_dict({name: _read(place, dtype) for name, place in stored.items()}, assign=True)
    for name, buffer in buffers.items():
        owner, _, leaf = name.rpartition(".")
        setattr(tower.get_submodule(owner), leaf, buffer)
    return tower.eval()


def stored_dtype(path_or_hub_id: str | Path) -> torch.dtype:
    """The dtype that holds every tensor of a checkpoint's tower without loss; reads the files' headers only."""
    directory = resolve_model_dir(path_or_hub_id)
    config = read_config(directory)
    adapter = adapter_for(config)
    return _common_dtype(_survey(directory, adapter, adapter.vision_config(config))[1])


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InfopruneError(f"{path} is not readable JSON: {error}") from error
    if not isinstance(data, dict):
        raise InfopruneError(f"{path} must hold a JSON object, not a {type(data).__name__}")
    return data


def _survey(
    directory: Path, adapter: TowerAdapter, vision_config: PretrainedConfig
) -> tuple[nn.Module, dict[str, Stored]]:
    """The tower without memory (on the meta device), and where each of its tensors lies; no tensor is read."""
    with torch.device("meta"):
        tower = adapter.build(vision_config)
    wanted = tower.state_dict()
    files = weight_map(directory, stem="model")
    prefix = _tower_prefix(directory, adapter, files, wanted)
    _check_names(directory, prefix, files, wanted, known={name for name, _ in tower.named_buffers()})
    found = headers(directory, {prefix + name: files[prefix + name] for name in wanted})
    stored = {name: found[prefix + name] for name in wanted}
    for name, tensor in wanted.items():
        _check_tensor(stored[name], tensor)
    return tower, stored


def _tower_prefix(directory: Path, adapter: TowerAdapter, names: Collection[str], wanted: Collection[str]) -> str:
    """What this checkpoint's layout puts before the tower's own names: the prefix that most of them are found under."""
    found = {prefix: sum(prefix + name in names for name in wanted) for prefix in (*adapter.checkpoint_prefixes, "")}
    prefix = max(found, key=lambda p: found[p])
    if not found[prefix]:
        raise InfopruneError(f"the weights in {directory} hold no tensor of a {adapter.architecture} tower")
    return prefix


def _check_names(
    directory: Path, prefix: str, names: Collection[str], wanted: Collection[str], known: Collection[str]
) -> None:
    """Refuse missing and unexpected tensors; ``known`` are buffers, which older files still carry."""
    missing = [prefix + name for name in wanted if prefix + name not in names]
    if missing:
        raise InfopruneError(
            f"the weights in {directory} lack {len(missing)} of the tower's tensors, first {missing[0]!r}"
        )
    allowed = {prefix + name for name in (*wanted, *known)}
    unexpected = sorted(name for name in names if name.startswith(prefix) and name not in allowed)
    if unexpected:
        raise InfopruneError(
            f"the weights in {directory} hold {len(unexpected)} tensors that the tower of {CONFIG_NAME} does not have, "
            f"first {unexpected[0]!r}; config and weights belong to different models"
        )


def _check_tensor(stored: Stored, like: Tensor) -> None:
    if stored.shape != tuple(like.shape):
        raise InfopruneError(
            f"{stored.path}: tensor {stored.name!r} has shape {stored.shape}, but {CONFIG_NAME} makes it "
            f"{tuple(like.shape)}"
        )
    if stored.dtype not in DTYPES:
        raise InfopruneError(
            f"{stored.path}: tensor {stored.name!r} is stored as {stored.dtype}; take a checkpoint that is not "
            f"quantised ({', '.join(DTYPES)})"
        )


def _common_dtype(stored: Mapping[str, Stored]) -> torch.dtype:
    return reduce(torch.promote_types, (DTYPES[place.dtype] for place in stored.values()))


def _read(place: Stored, dtype: torch.dtype) -> Tensor:
    """One tensor, copied out of its file."""
    tensor = read_mapped(place)
    if not torch.stack(tensor.aminmax()).isfinite().all():  # no temporary of the tensor's size; NaN carries through
        raise InfopruneError(f"{place.path}: tensor {place.name!r} holds NaN or infinite values")
    return tensor.to(dtype, copy=True)


def _buffers(adapter: TowerAdapter, vision_config: PretrainedConfig) -> dict[str, Tensor]:
    """The buffers that no file holds (rotary frequencies, position ids), from a tower without blocks."""
    blockless = copy.deepcopy(vision_config)
    setattr(blockless, adapter.depth_field, 0)
    return dict(adapter.build(blockless).named_buffers())
