"""The whole way from a dense model to a compact one: make a plan, carry it out, write or hold the result."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from infoprune_rt import checkpoint
from infoprune_rt.errors import InfopruneError
from infoprune_rt.files import recover
from infoprune_rt.hardware import named_device
from infoprune_rt.hub import resolve_model_dir
from infoprune_rt.plan import BlockPlan, FFNPlan, Plan
from infoprune_rt.pruning.apply import Applied, apply_plan
from infoprune_rt.pruning.memory import known_rows, require_memory, require_spill_space, spills
from infoprune_rt.pruning.quantization import quantized
from infoprune_rt.pruning.selection import kept_heads
from infoprune_rt.runtime.encoder import CompactEncoder
from infoprune_rt.shards import require_space
from infoprune_rt.towers import adapter_for
from infoprune_rt.towers.base import TowerAdapter, TowerShape
from infoprune_rt.towers.loading import load_tower, read_config, stored_dtype
from infoprune_rt.vlm import rest_bytes, rest_of_checkpoint

BatchesFactory = Callable[[], Iterable[Mapping[str, Tensor]]]
Progress = Callable[[int, int], None]


def make_plan(
    architecture: str,
    shape: TowerShape,
    *,
    masks: Tensor | None = None,
    zeta: Tensor | None = None,
    ffn: FFNPlan | None = None,
    dense_blocks: Collection[int] = (),
    used_blocks: int | None = None,
    refit: bool = True,
    sequential: bool = True,
    method: dict[str, Any] | None = None,
    provenance: dict[str, Any] | None = None,
) -> Plan:
    """A plan that treats all blocks alike, except that the FFNs of ``dense_blocks`` stay.

    masks: [L, H] bool, True where a head stays; None keeps all. zeta: [L, H], what the kept heads are scaled
    by; None sets them back to 1. ffn: None keeps all FFNs dense. used_blocks: those behind stay as they are,
    since nothing tells what they would have to preserve (``TowerAdapter.used_blocks``).
    """
    for name, table in (("masks", masks), ("zeta", zeta)):
        if table is not None and table.shape != (shape.num_blocks, shape.num_heads):
            raise InfopruneError(
                f"{name} of shape {tuple(table.shape)} does not fit a tower of {shape.num_blocks} blocks with "
                f"{shape.num_heads} heads"
            )
    for index in dense_blocks:
        if not 0 <= index < shape.num_blocks:
            raise InfopruneError(f"there is no block {index} to keep dense; blocks are 0..{shape.num_blocks - 1}")
    used = shape.num_blocks if used_blocks is None else used_blocks
    every = tuple(range(shape.num_heads))
    heads = kept_heads(masks) if masks is not None else (every,) * shape.num_blocks
    heads = heads[:used] + (every,) * (shape.num_blocks - used)
    forms = [FFNPlan() if ffn is None or i in dense_blocks or i >= used else ffn for i in range(shape.num_blocks)]
    factors = [
        None if zeta is None or i >= used else tuple(zeta[i, list(kept)].tolist()) for i, kept in enumerate(heads)
    ]
    blocks = tuple(BlockPlan(*parts) for parts in zip(heads, forms, factors, strict=True))
    return Plan(architecture, shape, blocks, refit, sequential, method or {}, provenance or {})


def build_compact(
    adapter: TowerAdapter, vision_config: PretrainedConfig, applied: Applied, dtype: torch.dtype | None = None
) -> CompactEncoder:
    """The compact tower in memory, in eval mode. dtype: of all but int8 weights; None keeps what there is."""
    tower = _with_weights(adapter.compact_config(vision_config, applied.specs), applied.state)
    tower.plan = applied.plan
    if dtype is not None:
        tower.to(dtype)
    return tower


def quantize_tower(tower: CompactEncoder) -> CompactEncoder:
    """A copy of a compact tower with int8 weights in every block, as ``compress --quantize int8`` makes them."""
    config = copy.deepcopy(tower.config)
    config.blocks = [{**block, "quantize": "int8"} for block in config.blocks]
    state = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    blocks = {name: tensor for name, tensor in state.items() if name.startswith("blocks.")}
    copied = _with_weights(config, state | quantized(blocks))
    copied.plan = None if tower.plan is None else tower.plan.quantized("int8")
    copied.source_dir = tower.source_dir
    return copied


def _with_weights(config: PretrainedConfig, state: Mapping[str, Tensor]) -> CompactEncoder:
    """The compact tower of a config, in eval mode, on these very tensors."""
    tower = checkpoint.compact_tower(config)
    if not isinstance(tower, CompactEncoder):
        raise TypeError(f"{type(tower).__name__} is no compact encoder")
    tower.load_state_dict(state, assign=True)
    tower.eval()
    return tower


def compress(
    tower: nn.Module, adapter: TowerAdapter, plan: Plan, batches: BatchesFactory, progress: Progress | None = None
) -> CompactEncoder:
    """An unmodified tower in, a compact one on the same device out; the given tower is not changed.

    batches: gives calibration batches (tower inputs); called as ``apply_plan`` says.
    """
    applied = apply_plan(tower, adapter, plan, batches, progress)
    return build_compact(adapter, adapter.vision_config(tower.config), applied)


def compress_checkpoint(
    model: str | Path,
    out: Path,
    plan: Plan,
    batches: BatchesFactory,
    *,
    tower_only: bool = False,
    overwrite: bool = False,
    device: str | torch.device = "auto",
    spill_dir: Path | None = None,
    progress: Progress | None = None,
) -> Applied:
    """Compress a checkpoint on disk; only its tower is ever held in memory.

    A full model gives a full compact model, unless ``tower_only``; a tower gives a tower. Calibration and
    fits run in float32 on ``device`` ("auto": a GPU if there is one); the weights are written in the dtype
    that the tower is stored in (those that the plan quantises, in int8). ``spill_dir``: where sequential
    fits keep activations (None: the system's temporary directory). Memory is judged before any work, and so
    is the disk if ``batches`` has a method ``rows`` (``pruning.memory.Counted``).
    """
    place = named_device(str(device))
    source = resolve_model_dir(model)
    out = Path(out)
    recover(out)
    if out.exists() and not (overwrite and checkpoint.is_replaceable(out)):
        hint = "overwrite it" if checkpoint.is_replaceable(out) else "clear it away: it is no compact checkpoint"
        raise InfopruneError(f"{out} exists already; choose another place, or {hint}")
    config = read_config(source)
    adapter = adapter_for(config)
    vision_config = adapter.vision_config(config)
    plan.check_tower(adapter.architecture, adapter.shape(vision_config))
    tower_only = tower_only or config.model_type in adapter.vision_model_types
    dtype = stored_dtype(source)
    if not tower_only:
        require_space(out, rest_bytes(source, adapter))
    require_memory(plan, place)
    if spill_dir is not None and not spill_dir.is_dir():
        raise InfopruneError(f"there is no directory {spill_dir} to spill calibration activations to; make it first")
    if spills(plan) and (rows := known_rows(batches)) is not None:
        require_spill_space(plan, rows, torch.float32.itemsize, spill_dir or Path(tempfile.gettempdir()))
    provenance = {**plan.provenance, "model": str(model)}
    tower = load_tower(source, dtype=torch.float32).to(place)
    applied = apply_plan(tower, adapter, replace(plan, provenance=provenance), batches, progress, spill_dir)
    del tower
    state = {
        name: tensor.to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in applied.state.items()
    }
    compact_config = adapter.compact_config(vision_config, applied.specs)
    if tower_only:
        checkpoint.save_tower(out, compact_config, state, applied.plan, source, overwrite)
    else:
        rest = rest_of_checkpoint(source, adapter)
        checkpoint.save_vlm(out, config, compact_config, state, rest, applied.plan, source, overwrite)
    return applied
