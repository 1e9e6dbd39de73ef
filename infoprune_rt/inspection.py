"""What a tower consists of, block by block: heads, FFN form, parameters, FLOPs."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

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
    """One block. The FLOPs are those of one image of the inspected number of patches."""

    block: int
    heads: int
    ffn: str
    size: int | None
    parameters: int
    flops: int
    held_out_error: float | None
    note: str | None


@dataclass(frozen=True)
class Inspection:
    """A tower's blocks beside the dense tower they come from."""

    architecture: str
    shape: TowerShape
    patches: int
    rows: list[Row]
    parameters: int
    flops: int
    dense_parameters: int
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
    return describe(adapter.architecture, shape, specs, patches, notes or [(None, None)] * len(specs))


def describe(
    architecture: str,
    shape: TowerShape,
    specs: list[BlockSpec],
    patches: int,
    notes: list[tuple[float | None, str | None]],
) -> Inspection:
    """Count the blocks of ``specs`` on one image of ``patches`` patches."""
    costs = tower_costs(specs, shape, [patches])
    rows = [
        Row(i, spec.num_heads, spec.ffn, _size(spec, shape), cost.parameters, cost.flops, error, note)
        for i, (spec, cost, (error, note)) in enumerate(zip(specs, costs, notes, strict=True))
    ]
    total = sum(costs, BlockCost())
    dense = sum(tower_costs(dense_specs(shape), shape, [patches]), BlockCost())
    return Inspection(architecture, shape, patches, rows, total.parameters, total.flops, dense.parameters, dense.flops)


def _size(spec: BlockSpec, shape: TowerShape) -> int | None:
    return shape.ffn_width if spec.ffn == "dense" else spec.size


def inspection_table(found: Inspection) -> Table:
    """The same for people."""
    shape = found.shape
    title = f"{found.architecture}: {shape.num_blocks} blocks, d={shape.width}, heads of {shape.head_dim}"
    table = Table(title=title, caption=f"FLOPs of one image of {found.patches} patches (2 per multiply-add)")
    for name in ("block", "heads", "FFN", "size", "parameters", "MFLOPs", "held-out error", "note"):
        table.add_column(name, justify="left" if name in ("FFN", "note") else "right")
    for row in found.rows:
        error = "" if row.held_out_error is None else f"{row.held_out_error:.3f}"
        size = "" if row.size is None else str(row.size)
        heads = f"{row.heads}/{shape.num_heads}"
        flops = f"{row.flops / 1e6:,.0f}"
        table.add_row(str(row.block), heads, row.ffn, size, f"{row.parameters:,}", flops, error, row.note or "")
    table.add_section()
    kept, work = found.parameters / found.dense_parameters, found.flops / found.dense_flops
    table.add_row("all", "", "", "", f"{found.parameters:,}", f"{found.flops / 1e6:,.0f}", "", "")
    table.add_row("of dense", "", "", "", f"{kept:.1%}", f"{work:.1%}", "", "")
    return table
