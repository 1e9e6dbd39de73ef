"""Fit block after block on the already compressed stream, against the dense residual stream.

Block l sees what the compact blocks before it really produce, and its attention and FFN aim at the
dense tower's residual stream after them, so that each block also makes up for the errors before it.
Both streams of all calibration images lie on disk between blocks: memory does not grow with the
number of images, and the work is linear in depth.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from infoprune_rt.errors import InfopruneError
from infoprune_rt.plan import BlockPlan, Plan
from infoprune_rt.pruning.calibration import (
    BlockMoments,
    Wants,
    check_finite,
    embedded,
    head_columns,
    head_outputs,
    shape_of,
    watch,
)
from infoprune_rt.pruning.compaction import refitted, slice_attention
from infoprune_rt.pruning.ffn_forms import FFNFit, FFNWeights, corrected
from infoprune_rt.pruning.ffn_modes import fit_ffn, wants_of
from infoprune_rt.pruning.moments import Twin
from infoprune_rt.towers.base import SourceBlock, Stream, TowerAdapter, TowerShape


@dataclass(frozen=True)
class _Chunk:
    """One calibration batch on disk: its streams change from block to block, the rest does not."""

    index: int
    folder: Path
    cu_seqlens: tuple[int, ...]
    cut: int  # first held-out row
    device: torch.device

    def save(self, name: str, **tensors: Tensor) -> None:
        aside = self.folder / "aside"
        try:
            save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, aside)
            aside.replace(self._path(name))  # never written in place: loaded tensors may map the old file
        except (OSError, SafetensorError) as error:
            raise InfopruneError(
                f"could not spill calibration activations to {self.folder}: {error}; free some disk space, use fewer "
                "images, or choose another place (--spill-dir)"
            ) from error

    def load(self, name: str) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = load_file(self._path(name), device=str(self.device))
        return tensors

    def _path(self, name: str) -> Path:
        return self.folder / f"{self.index}-{name}.safetensors"

    def stream(self) -> Stream:
        tables = self.load("positions")
        return Stream(self.cu_seqlens, tables.get("cos"), tables.get("sin"))


@dataclass(frozen=True)
class _Site:
    """One block under work."""

    index: int
    block: SourceBlock
    plan: BlockPlan
    wants: Wants
    adapter: TowerAdapter
    shape: TowerShape

    def where(self, chunk: _Chunk, what: str) -> str:
        return f"block {self.index}, calibration batch {chunk.index}, {what}"


def fit_sequentially(
    tower: nn.Module,
    adapter: TowerAdapter,
    plan: Plan,
    batches: Iterable[Mapping[str, Tensor]],
    count: int,
    spill_dir: Path | None = None,
) -> Iterator[tuple[dict[str, Tensor], FFNFit]]:
    """Attention tensors and FFN fit of the first ``count`` blocks, front to back.

    ``batches`` (tower inputs) are read once. The streams lie in ``spill_dir`` (None: the system's
    temporary directory) meanwhile. Raises InfopruneError for no batches, for NaN or
    infinite activations (block and batch named) and for a full disk.
    """
    blocks, shape = adapter.blocks(tower), shape_of(tower, adapter)
    with tempfile.TemporaryDirectory(prefix="infoprune-", dir=spill_dir) as folder, torch.no_grad():
        chunks = _spill_embeddings(tower, adapter, batches, Path(folder))
        for i, (block, block_plan) in enumerate(zip(blocks[:count], plan.blocks[:count], strict=True)):
            yield _fit_block(_Site(i, block, block_plan, wants_of(plan, block_plan), adapter, shape), chunks)


def _spill_embeddings(
    tower: nn.Module, adapter: TowerAdapter, batches: Iterable[Mapping[str, Tensor]], folder: Path
) -> list[_Chunk]:
    chunks = []
    for index, x, stream, cut in embedded(tower, adapter, batches):
        chunk = _Chunk(index, folder, stream.cu_seqlens, cut, x.device)
        tables = {"cos": stream.cos, "sin": stream.sin}
        chunk.save("positions", **{name: table for name, table in tables.items() if table is not None})
        chunk.save("streams", dense=x, compact=x.clone())
        chunks.append(chunk)
    return chunks


def _fit_block(site: _Site, chunks: list[_Chunk]) -> tuple[dict[str, Tensor], FFNFit]:
    moments = BlockMoments.empty(site.wants, site.shape, chunks[0].device)
    for chunk in chunks:
        _attend(site, chunk, moments)
    attention = slice_attention(site.adapter, site.block, site.plan)
    if moments.heads is not None:
        attention = refitted(attention, moments.heads)
    for chunk in chunks:
        _reach_ffn(site, chunk, attention, moments)
    weights = FFNWeights.of(site.block, site.shape.activation)
    ffn = fit_ffn(weights, moments.ffn, site.plan.ffn)
    if ffn.activation is not None:
        ffn = corrected(weights, site.plan.ffn, ffn, _hidden_moments(site, chunks, ffn))
    for chunk in chunks:
        streams = chunk.load("streams")
        middle = streams["compact"]
        chunk.save(
            "streams", dense=streams["dense"], compact=middle + ffn(site.block.norm2(middle), weights.activation)
        )
    return attention, ffn


def _attend(site: _Site, chunk: _Chunk, moments: BlockMoments) -> None:
    """Run the dense block on the dense stream; keep the compact stream's Z beside it."""
    streams, stream = chunk.load("streams"), chunk.stream()
    compact = streams["compact"]
    with watch(site.block) as seen:
        dense = site.adapter.run_block(site.block, streams["dense"], stream)
    if site.plan.heads:
        columns = head_columns(site.plan.heads, site.shape.head_dim, compact.device)
        z = head_outputs(site.adapter, site.block, compact, stream)[:, columns]
    else:
        z = compact[:, :0]
    if moments.heads is not None:
        target = seen.middle - compact
        check_finite(target, site.where(chunk, "attention output"))
        moments.heads.add(z, target, chunk.cut)
    chunk.save("streams", dense=dense, compact=compact)
    chunk.save("heads", z=z)


def _reach_ffn(site: _Site, chunk: _Chunk, attention: dict[str, Tensor], moments: BlockMoments) -> None:
    """Advance the compact stream over the compact attention and count what the FFN should do there."""
    streams, z = chunk.load("streams"), chunk.load("heads")["z"]
    bias = attention["out.bias"]
    middle = streams["compact"] + (F.linear(z, attention["out.weight"], bias) if site.plan.heads else bias)
    if moments.ffn is not None:
        x, target = _ffn_rows(site, streams["dense"], middle)
        check_finite(target, site.where(chunk, "FFN output"))
        activation = site.shape.activation
        hidden = x if site.wants.ffn == "input" else FFNWeights.of(site.block, activation).hidden(x)
        moments.ffn.add(site.wants.ffn_rows(x, hidden, activation), target, chunk.cut)
    chunk.save("streams", dense=streams["dense"], compact=middle)


def _hidden_moments(site: _Site, chunks: list[_Chunk], ffn: FFNFit) -> Twin:
    """Moments of the fitted FFN's hidden values -> what the FFN should do, with every chunk before its FFN."""
    size = len(ffn.tensors["fc1_weight"])
    moments = Twin.empty(size, site.shape.width, means_only=True, device=chunks[0].device)
    for chunk in chunks:
        streams = chunk.load("streams")
        x, target = _ffn_rows(site, streams["dense"], streams["compact"])
        moments.add(ffn.hidden(x, site.shape.activation), target, chunk.cut)
    return moments


def _ffn_rows(site: _Site, dense: Tensor, middle: Tensor) -> tuple[Tensor, Tensor]:
    """The FFN's input on the compact stream, and what it has to add there to arrive at the dense stream."""
    return site.block.norm2(middle), dense - middle
