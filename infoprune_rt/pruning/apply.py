"""Carry a plan out: an unmodified tower in, the compact tower's weights and the resolved plan out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from infoprune_rt.errors import InfopruneError
from infoprune_rt.plan import BlockPlan, FFNPlan, Plan
from infoprune_rt.pruning.calibration import BlockMoments, Wants, calibrate, shape_of
from infoprune_rt.pruning.compaction import pack, refitted, slice_attention
from infoprune_rt.pruning.ffn_forms import FFNFit, FFNWeights, corrected
from infoprune_rt.pruning.ffn_modes import fit_ffn, wants_of
from infoprune_rt.pruning.memory import require_memory
from infoprune_rt.pruning.quantization import quantized
from infoprune_rt.pruning.sequential import fit_sequentially
from infoprune_rt.towers.base import TowerAdapter

Batches = Iterable[Mapping[str, Tensor]]
_Fits = Iterator[tuple[dict[str, Tensor], FFNFit]]


@dataclass(frozen=True)
class Applied:
    """A plan carried out.

    plan: the resolved plan. state: the compact tower's state dict, in the dense tower's dtype (weights that
    the plan quantises in int8) and sharing no memory with it. specs: the compact config's ``blocks``.
    spectra: per block what its FFN's size was chosen by (``FFNFit.spectrum``), None for blocks planned dense.
    """

    plan: Plan
    state: dict[str, Tensor]
    specs: list[dict[str, Any]]
    spectra: list[Tensor | None]


def apply_plan(
    tower: nn.Module,
    adapter: TowerAdapter,
    plan: Plan,
    batches_factory: Callable[[], Batches],
    progress: Callable[[int, int], None] | None = None,
    spill_dir: Path | None = None,
) -> Applied:
    """Compact an unmodified tower as planned, on its own device; the tower itself is not changed.

    ``batches_factory`` gives calibration batches (tower inputs, on any device); it is called once, and only
    if a fit needs data (a second time if factors get an activation between them and the fits are not
    sequential). ``progress(done, blocks)`` is called after each block. ``spill_dir``: where sequential fits
    keep activations (None: the system's temporary directory). Raises InfopruneError for a plan of another
    tower, too little memory, NaN or infinite weights or activations, and missing calibration data.
    """
    _check(tower, adapter, plan)
    require_memory(plan, next(tower.parameters()).device)
    state: dict[str, Tensor] = {}
    specs: list[dict[str, Any]] = []
    spectra: list[Tensor | None] = []
    blocks: list[BlockPlan] = []
    with torch.no_grad():
        for i, (attention, ffn) in enumerate(_fits(tower, adapter, plan, batches_factory, spill_dir)):
            block_plan = plan.blocks[i]
            packed = pack(adapter.blocks(tower)[i], attention, ffn)
            if block_plan.quantize:
                packed = quantized(packed)
            state |= {f"blocks.{i}.{name}": tensor for name, tensor in packed.items()}
            specs.append(_spec(block_plan, ffn))
            spectra.append(ffn.spectrum)
            blocks.append(replace(block_plan, ffn=_resolved(block_plan.ffn, ffn)))
            if progress is not None:
                progress(i + 1, plan.shape.num_blocks)
        ends = adapter.ends_state(tower)
        state |= {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in ends.items()}
    return Applied(replace(plan, blocks=tuple(blocks)), state, specs, spectra)


def _fits(
    tower: nn.Module,
    adapter: TowerAdapter,
    plan: Plan,
    batches_factory: Callable[[], Batches],
    spill_dir: Path | None,
) -> _Fits:
    """Attention tensors and FFN fit of every block, front to back."""
    wants = [wants_of(plan, block) for block in plan.blocks]
    reach = max((i + 1 for i, want in enumerate(wants) if want.anything), default=0)  # blocks that data must reach
    if reach and plan.sequential:
        yield from fit_sequentially(tower, adapter, plan, batches_factory(), reach, spill_dir)
        yield from _fit_apart(tower, adapter, plan, [BlockMoments()] * plan.shape.num_blocks, reach)
        return
    moments = calibrate(tower, adapter, batches_factory(), wants) if reach else [BlockMoments()] * len(wants)
    fits = _fit_apart(tower, adapter, plan, moments, 0)
    if any(block.ffn.between for block in plan.blocks):
        fits = _corrected(tower, adapter, plan, list(fits), batches_factory)
    yield from fits


def _fit_apart(tower: nn.Module, adapter: TowerAdapter, plan: Plan, moments: list[BlockMoments], first: int) -> _Fits:
    """Each block from ``first`` on by its own moments, which are let go as soon as they were used."""
    for i, block in enumerate(adapter.blocks(tower)[first:], start=first):
        data, moments[i] = moments[i], BlockMoments()
        attention = slice_attention(adapter, block, plan.blocks[i])
        if data.heads is not None:
            attention = refitted(attention, data.heads)
        weights = FFNWeights.of(block, plan.shape.activation)
        yield attention, fit_ffn(weights, data.ffn, plan.blocks[i].ffn)


def _corrected(
    tower: nn.Module,
    adapter: TowerAdapter,
    plan: Plan,
    fits: list[tuple[dict[str, Tensor], FFNFit]],
    batches_factory: Callable[[], Batches],
) -> _Fits:
    """The same fits; for those with an activation between their factors the data are read once more."""
    wants = [Wants(None if ffn.activation is None else ffn, means_only=True) for _, ffn in fits]
    if not any(want.anything for want in wants):
        yield from fits
        return
    moments = calibrate(tower, adapter, batches_factory(), wants)
    for i, (attention, ffn) in enumerate(fits):
        weights, data = FFNWeights.of(adapter.blocks(tower)[i], plan.shape.activation), moments[i].ffn
        yield attention, ffn if data is None else corrected(weights, plan.blocks[i].ffn, ffn, data)


def _check(tower: nn.Module, adapter: TowerAdapter, plan: Plan) -> None:
    plan.check_tower(adapter.architecture, shape_of(tower, adapter))
    for name, parameter in tower.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise InfopruneError(f"the tower's weight {name} holds NaN or infinity; get an intact checkpoint")


def _spec(plan: BlockPlan, ffn: FFNFit) -> dict[str, Any]:
    """One entry of the compact config's ``blocks``; only factors and kept neurons have a size."""
    size = ffn.size if ffn.kind in ("lowrank", "neurons", "hybrid") else None
    rare = {"activation": ffn.activation, "quantize": plan.quantize, "linear": ffn.linear or None}
    spec = {"num_heads": len(plan.heads), "ffn": ffn.kind, "size": size}
    return spec | {name: value for name, value in rare.items() if value is not None}


def _resolved(plan: FFNPlan, fit: FFNFit) -> FFNPlan:
    """What was wanted stays as it was, so that an edited epsilon decides anew."""
    sizes = replace(plan, kind=fit.kind, fitted_size=fit.size, fitted_linear=fit.linear or None)
    return replace(sizes, held_out_error=fit.held_out_error, note=fit.note)
