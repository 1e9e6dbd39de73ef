"""The compact checkpoint: an HF-style directory for a compact tower alone or inside its full model.

    config.json                 the compact tower's config; for a full model {"model_type": "infoprune_vlm",
                                "vlm_config": {...}, "tower_config": {...}}
    infoprune*.safetensors      weights; in a full model the tower's tensors have files of their own and the
                                prefix "tower.", all others keep the full model's names
    plan.json                   the plan that the tower came from
    preprocessor_config.json, tokenizer files, ...   copied from the source
    manifest.json               format version, kind, and bytes + sha256 of every other file

The weights' file name is deliberate: stock ``from_pretrained`` finds no weights it knows and fails,
instead of re-initialising what does not fit.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import reduce
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModel, PretrainedConfig

from infoprune_rt.errors import InfopruneError
from infoprune_rt.files import new_directory
from infoprune_rt.hub import fetch, is_snapshot
from infoprune_rt.plan import Plan
from infoprune_rt.shards import INDEX_NAME, ShardWriter, read_tensors, require_space, weight_map

FORMAT = 1
VLM_MODEL_TYPE = "infoprune_vlm"
TOWER_PREFIX = "tower."
MANIFEST = "manifest.json"
CONFIG = "config.json"
PLAN = "plan.json"

_IMAGE_FILES = ("preprocessor_config.json", "video_preprocessor_config.json", "processor_config.json")
_TEXT_FILES = (
    "generation_config.json",
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
)
# A file of one of these kinds that the manifest does not list was put there by someone else.
_GUARDED = ("*.safetensors", "*.safetensors.index.json", "*.bin", "*.pt", "*.pth", "*.ckpt", PLAN, CONFIG)

Kind = Literal["tower", "vlm"]
State = Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]


@dataclass(frozen=True)
class FileRecord:
    """What the manifest says of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The checked manifest of a compact checkpoint."""

    kind: Kind
    files: dict[str, FileRecord]


# ------------------------------------------------------------------ writing


def save_tower(
    directory: Path,
    config: PretrainedConfig,
    state: Mapping[str, Tensor],
    plan: Plan,
    source_dir: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Write a compact tower's checkpoint.

    config: the compact tower's config. state: its whole state dict (kept dtypes, any device).
    source_dir: where the image-processor files are copied from. All or nothing: an error of any
    kind leaves ``directory`` as it was.
    """
    _check_state(config, state)
    _check_plan(plan, config.blocks)
    with new_directory(directory, overwrite=overwrite) as folder:
        require_space(folder, _known_bytes(state))
        writer = ShardWriter(folder)
        writer.add(state.items())
        writer.finish()
        _finish(folder, "tower", _tower_config(config, state), plan, source_dir, _IMAGE_FILES)


def save_vlm(
    directory: Path,
    vlm_config: PretrainedConfig,
    tower_config: PretrainedConfig,
    tower_state: Mapping[str, Tensor],
    rest_state: State,
    plan: Plan,
    source_dir: Path | None = None,
    overwrite: bool = False,
) -> None:
    """Write a full model's checkpoint with a compact tower.

    vlm_config: the original full model's config. rest_state: every tensor outside the tower, under
    the full model's names; an iterator of pairs is consumed shard by shard, so the language model
    never has to fit into memory. Otherwise as ``save_tower``, with the tokenizer's files as well.
    """
    _check_state(tower_config, tower_state)
    _check_plan(plan, tower_config.blocks)
    config = {
        "model_type": VLM_MODEL_TYPE,
        "vlm_config": _config_dict(vlm_config),
        "tower_config": _tower_config(tower_config, tower_state),
    }
    with new_directory(directory, overwrite=overwrite) as folder:
        require_space(folder, _known_bytes(tower_state) + _known_bytes(rest_state))
        writer = ShardWriter(folder)
        writer.add((TOWER_PREFIX + name, tensor) for name, tensor in tower_state.items())
        writer.flush()
        writer.add(rest_state.items() if isinstance(rest_state, Mapping) else rest_state)
        writer.finish()
        _finish(folder, "vlm", config, plan, source_dir, _IMAGE_FILES + _TEXT_FILES)


def _finish(
    folder: Path, kind: Kind, config: dict[str, Any], plan: Plan, source_dir: Path | None, patterns: tuple[str, ...]
) -> None:
    """Everything but the weights; the manifest last, over the files as they can be read back."""
    (folder / CONFIG).write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    plan.write(folder / PLAN)
    if source_dir is not None:
        for source in sorted({path for pattern in patterns for path in Path(source_dir).glob(pattern)}):
            if source.is_file():
                shutil.copyfile(source, folder / source.name)
    files = {}
    for path in sorted(folder.iterdir()):
        path.chmod(0o644)
        files[path.name] = asdict(_record(path))
    manifest = {"format": FORMAT, "kind": kind, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")


def _record(path: Path) -> FileRecord:
    with path.open("rb") as file:
        return FileRecord(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())


def _config_dict(config: PretrainedConfig) -> dict[str, Any]:
    # Defaults are written out too: another transformers version may have others.
    # Where a config was once read from is the writer's own affair.
    values: dict[str, Any] = json.loads(
        config.to_json_string(use_diff=False),
        object_hook=lambda found: {key: value for key, value in found.items() if key != "_name_or_path"},
    )
    return values


def _tower_config(config: PretrainedConfig, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """With the dtype that holds all of the tower's floating-point tensors."""
    dtype = reduce(torch.promote_types, (tensor.dtype for tensor in state.values() if tensor.is_floating_point()))
    return _config_dict(config) | {"dtype": str(dtype).removeprefix("torch.")}


def _known_bytes(state: State) -> int:
    return sum(tensor.nbytes for tensor in state.values()) if isinstance(state, Mapping) else 0


# ------------------------------------------------------------------ checking


def compact_tower(config: PretrainedConfig) -> torch.nn.Module:
    """The compact tower that ``config`` describes, on the meta device (shapes without memory)."""
    with torch.device("meta"):
        tower: torch.nn.Module = AutoModel.from_config(config)
    return tower


def _check_state(config: PretrainedConfig, state: Mapping[str, Tensor]) -> None:
    if not hasattr(config, "blocks"):
        raise InfopruneError(f"{type(config).__name__} is not the config of a compact tower: it has no blocks")
    match_state(compact_tower(config), state, "the tower's weights")


def match_state(model: torch.nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """``state`` must hold exactly the model's tensors, by name and shape; int8 weights and no others in int8."""
    expected = model.state_dict()
    missing, unexpected = sorted(expected.keys() - state.keys()), sorted(state.keys() - expected.keys())
    if missing or unexpected:
        problem = f"lack {missing[0]!r}" if missing else f"have an unexpected {unexpected[0]!r}"
        raise InfopruneError(f"{what} do not fit the config's blocks: they {problem}")
    for name, want in expected.items():
        if state[name].shape != want.shape:
            raise InfopruneError(
                f"{what} do not fit the config's blocks: {name!r} has shape {tuple(state[name].shape)}, "
                f"not {tuple(want.shape)}"
            )
        if (state[name].dtype == torch.int8) != (want.dtype == torch.int8):
            wanted = "torch.int8" if want.dtype == torch.int8 else "a floating-point tensor"
            raise InfopruneError(
                f"{what} do not fit the config's blocks: {name!r} is {state[name].dtype}, not {wanted}; "
                "compress the dense model again"
            )


def _check_plan(plan: Plan, blocks: list[dict[str, Any]]) -> None:
    if len(plan.blocks) != len(blocks):
        raise InfopruneError(f"the plan has {len(plan.blocks)} blocks, but the tower's config has {len(blocks)}")
    for i, (planned, built) in enumerate(zip(plan.blocks, blocks, strict=True)):
        if len(planned.heads) != built["num_heads"]:
            raise InfopruneError(
                f"block {i}: the plan keeps {len(planned.heads)} heads, but the tower's config has {built['num_heads']}"
            )
        if planned.ffn.kind is not None and planned.ffn.kind != built["ffn"]:
            raise InfopruneError(
                f"block {i}: the plan's FFN is {planned.ffn.kind!r}, but the tower's config has {built['ffn']!r}"
            )
        if planned.ffn.kind == "neurons" and planned.ffn.between != built.get("activation"):
            raise InfopruneError(
                f"block {i}: the plan's activation between factors is {planned.ffn.between!r}, but the tower's config "
                f"has {built.get('activation')!r}"
            )
        if planned.ffn.kind == "hybrid" and planned.ffn.fitted_linear != built.get("linear"):
            raise InfopruneError(
                f"block {i}: the plan's linear path has rank {planned.ffn.fitted_linear!r}, but the tower's config has "
                f"{built.get('linear')!r}"
            )
        if planned.quantize != built.get("quantize"):
            raise InfopruneError(
                f"block {i}: the plan quantises to {planned.quantize!r}, but the tower's config has "
                f"{built.get('quantize')!r}"
            )


def is_replaceable(directory: Path) -> bool:
    """Whether saving may replace ``directory``: it is empty, or an earlier compact checkpoint."""
    return directory.is_dir() and ((directory / MANIFEST).is_file() or not any(directory.iterdir()))


def read_manifest(directory: Path) -> Manifest:
    """The manifest itself, before any file is compared with it."""
    directory = Path(directory)
    path = directory / MANIFEST
    if not path.is_file():
        raise InfopruneError(f"{directory} is not a compact checkpoint: it has no {MANIFEST}")
    try:
        data = json.loads(path.read_text())
        version, kind = data["format"], data["kind"]
        files = {name: FileRecord(**record) for name, record in data["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InfopruneError(f"{path} is not a readable manifest: {error}") from error
    if version != FORMAT:
        raise InfopruneError(f"{path} has format {version!r}, but this version of infoprune reads format {FORMAT}")
    if kind not in ("tower", "vlm"):
        raise InfopruneError(f"{path} has the unknown kind {kind!r}")
    for name in files:
        if Path(name).name != name:
            raise InfopruneError(f"{path} names a file outside its directory: {name!r}")
    return Manifest(kind, files)


def verify(directory: Path) -> Manifest:
    """Compare every file with the manifest; the first that is missing, torn or altered is named."""
    manifest = read_manifest(directory)
    _compare(Path(directory), manifest, manifest.files)
    return manifest


def _compare(directory: Path, manifest: Manifest, thoroughly: Iterable[str]) -> None:
    """All files by presence and size; those named in ``thoroughly`` by content as well.

    Of a hub model only those are fetched, and others that are absent were not asked for.
    """
    thoroughly = set(thoroughly)
    fetch(directory, thoroughly)
    for name, record in manifest.files.items():
        path = directory / name
        if not path.is_file():
            if name not in thoroughly and is_snapshot(directory):
                continue
            raise InfopruneError(f"{path} is missing, though the checkpoint's {MANIFEST} lists it")
        size = path.stat().st_size
        if size != record.bytes:
            raise InfopruneError(f"{path} has {size} bytes instead of {record.bytes}: truncated or altered")
    for name in (CONFIG, PLAN):
        if name not in manifest.files:
            raise InfopruneError(f"{directory / MANIFEST} does not list {name}")
    extra = {path.name for pattern in _GUARDED for path in directory.glob(pattern)} - manifest.files.keys()
    if extra:
        raise InfopruneError(f"{directory / min(extra)} does not belong to the checkpoint: {MANIFEST} does not list it")
    for name in thoroughly:
        if _record(directory / name) != manifest.files[name]:
            raise InfopruneError(f"{directory / name} was altered: its sha256 is not the one in {MANIFEST}")


# ------------------------------------------------------------------ reading


@dataclass(frozen=True)
class TowerParts:
    """A compact tower as read from a directory."""

    config: PretrainedConfig
    plan: Plan
    state: dict[str, Tensor]


def load_tower(directory: Path) -> TowerParts:
    """Config, weights and plan of the tower in a tower's or a full model's checkpoint.

    Of a full model only the tower's files are opened and hashed; the others are checked by size.
    """
    directory = Path(directory)
    manifest = read_manifest(directory)
    metadata = {CONFIG, PLAN, INDEX_NAME} & manifest.files.keys()
    _compare(directory, manifest, metadata)
    prefix = TOWER_PREFIX if manifest.kind == "vlm" else ""
    places = {name: file for name, file in weight_map(directory).items() if name.startswith(prefix)}
    weight_files = set(places.values())
    _compare(directory, manifest, weight_files)
    state = {name.removeprefix(prefix): tensor for name, tensor in read_tensors(directory, places).items()}
    return TowerParts(*_config_and_plan(directory, manifest), state)


def read_description(directory: Path) -> tuple[PretrainedConfig, Plan]:
    """Config and plan of the tower, without its weights, whose presence and size alone are checked."""
    directory = Path(directory)
    manifest = read_manifest(directory)
    _compare(directory, manifest, {CONFIG, PLAN} & manifest.files.keys())
    return _config_and_plan(directory, manifest)


def _config_and_plan(directory: Path, manifest: Manifest) -> tuple[PretrainedConfig, Plan]:
    config = read_tower_config(directory, manifest)
    plan = Plan.read(directory / PLAN)
    _check_plan(plan, config.blocks)
    return config, plan


def load_rest_state(directory: Path) -> dict[str, Tensor]:
    """The tensors outside the tower in a full model's checkpoint (which has been verified)."""
    directory = Path(directory)
    places = {name: file for name, file in weight_map(directory).items() if not name.startswith(TOWER_PREFIX)}
    return read_tensors(directory, places)


def read_tower_config(directory: Path, manifest: Manifest) -> PretrainedConfig:
    """The compact tower's config."""
    values = _read_config(directory)
    return config_from_dict(values["tower_config"] if manifest.kind == "vlm" else values)


def read_vlm_config(directory: Path, manifest: Manifest) -> PretrainedConfig:
    """The original full model's config."""
    if manifest.kind != "vlm":
        raise InfopruneError(
            f"{directory} holds a tower alone, not a full model; open it with AutoModel.from_pretrained"
        )
    return config_from_dict(_read_config(directory)["vlm_config"])


def _read_config(directory: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((directory / CONFIG).read_text())
    return values


def config_from_dict(values: dict[str, Any]) -> PretrainedConfig:
    """A config object of the class that ``model_type`` names."""
    try:
        config: PretrainedConfig = AutoConfig.for_model(**values)
    except ValueError as error:
        raise InfopruneError(f"transformers does not know model type {values.get('model_type')!r}") from error
    return config
