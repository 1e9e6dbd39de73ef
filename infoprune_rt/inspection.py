"""What a tower consists of, block by block: heads, FFN form, parameters, FLOPs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from infoprune_rt import checkpoint
from infoprune_rt.hub import resolve_model_dir
from infoprune_rt.runtime.blocks import BlockSpec, block_specs, dense_specs
from infoprune_rt.runtime.costs import BlockCost, tower_costs
from infoprune_rt.towers import adapter_for
from infoprune_rt.towers.base import TowerShape
from infoprune_rt.towers.loading import read_config


@dataclass(frozen=True)
class Row:
    """One block. The FLOPs are those of one image of the inspected number of patches.

    linear: of a hybrid FFN's size, the rank of its linear path.
    quantize: "int8" where that is what the weights are stored as. bytes: of all the block's parameters; None where the
    model's config does not say in which dtype they are stored.
    """

    block: int
    heads: int
    ffn: str
    size: int | None
    linear: int | None
    quantize: str | None
    parameters: int
    bytes: int | None
    flops: int
    held_out_error: float | None
    note: str | None


@dataclass(frozen=True)
class Inspection:
    """A tower's blocks beside the dense tower they come from.

    dtype: of the stored parameters that are not quantised; None where the model's config does not say.
    """

    architecture: str
    shape: TowerShape
    patches: int
    dtype: str | None
    rows: list[Row]
    parameters: int
    bytes: int | None
    flops: int
    dense_parameters: int
    dense_bytes: int | None
    dense_flops: int

    def to_dict(self) -> dict[str, Any]:
        """For ``--json``."""
        return asdict(self)


def inspect_model(model: str | Path, patches: int) -> Inspection:
    """Read configs and plan only (no weights) of a dense model or a compact checkpoint."""
    directory = resolve_model_dir(model)
    notes: list[tuple[float | None, str | None]] = []
    if (directory / checkpoint.MANIFEST).exists():
        config, plan = checkpoint.read_description(directory)
        adapter = adapter_for(config)
        shape = adapter.shape(config)
        specs = block_specs(config.blocks, shape)
        notes = [(block.ffn.held_out_error, block.ffn.note) for block in plan.blocks]
    else:
        config = read_config(directory)
        adapter = adapter_for(config)
        shape = adapter.shape(adapter.vision_config(config))
        specs = dense_specs(shape)
    return describe(adapter.architecture, shape, specs, patches, config.dtype, notes or [(None, None)] * len(specs))


def describe(
    architecture: str,
    shape: TowerShape,
    specs: list[BlockSpec],
    patches: int,
    dtype: torch.dtype | None,
    notes: list[tuple[float | None, str | None]],
) -> Inspection:
    """Count the blocks of ``specs``, stored in ``dtype`` (if that is known), on one image of ``patches`` patches."""

    def counted(cost: BlockCost) -> tuple[int, int | None, int]:
        return cost.parameters, None if dtype is None else cost.bytes(dtype.itemsize), cost.flops

    costs = tower_costs(specs, shape, [patches])
    rows = [
        Row(i, spec.num_heads, spec.ffn, _size(spec, shape), spec.linear, spec.quantize, *counted(cost), error, note)
        for i, (spec, cost, (error, note)) in enumerate(zip(specs, costs, notes, strict=True))
    ]
    total = counted(sum(costs, BlockCost()))
    dense = counted(sum(tower_costs(dense_specs(shape), shape, [patches]), BlockCost()))
    stored = None if dtype is None else str(dtype).removeprefix("torch.")
    return Inspection(architecture, shape, patches, stored, rows, *total, *dense)


def _size(spec: BlockSpec, shape: TowerShape) -> int | None:
    return shape.ffn_width if spec.ffn == "dense" else spec.size


def inspection_table(found: Inspection) -> Table:
    """The same for people."""
    shape = found.shape
    stored = "" if found.dtype is None else f", {found.dtype}"
    title = f"{found.architecture}: {shape.num_blocks} blocks, d={shape.width}, heads of {shape.head_dim}{stored}"
    table = Table(title=title, caption=f"FLOPs of one image of {found.patches} patches (2 per multiply-add)")
    for name in ("block", "heads", "FFN", "size", "parameters", "MB", "MFLOPs", "held-out error", "note"):
        table.add_column(name, justify="left" if name in ("FFN", "note") else "right")
    for row in found.rows:
        error = "" if row.held_out_error is None else f"{row.held_out_error:.3f}"
        size = "" if row.size is None else str(row.size)
        if row.linear is not None:
            size += f" ({row.linear} linear)"
        heads = f"{row.heads}/{shape.num_heads}"
        flops = f"{row.flops / 1e6:,.0f}"
        form = row.ffn if row.quantize is None else f"{row.ffn} {row.quantize}"
        note = row.note or ""
        table.add_row(str(row.block), heads, form, size, f"{row.parameters:,}", _mb(row.bytes), flops, error, note)
    table.add_section()
    kept, work = found.parameters / found.dense_parameters, found.flops / found.dense_flops
    space = f"{found.bytes / found.dense_bytes:.1%}" if found.bytes and found.dense_bytes else ""
    total = (f"{found.parameters:,}", _mb(found.bytes), f"{found.flops / 1e6:,.0f}")
    table.add_row("all", "", "", "", *total, "", "")
    table.add_row("of dense", "", "", "", f"{kept:.1%}", space, f"{work:.1%}", "", "")
    return table


def _mb(number: int | None) -> str:
    return "" if number is None else f"{number / 1e6:,.2f}"
