"""A compact tower in ONNX, for other engines: the operators' plain definitions on packs of one fixed shape."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from infoprune_rt.ops import NAMESPACE, SCHEMAS, plain
from infoprune_rt.runtime.encoder import CompactEncoder
from infoprune_rt.towers.qwen2_vl import pack

OPSET = 18  # newer ones have an operator for attention, which OpenVINO and ONNX Runtime run more slowly


class FixedPack(nn.Module):
    """A compact Qwen2-VL tower, patch embedding to merger, on packs with these grids: tensor in, tensor out.

    Bounds and rotary tables are constants, which spares other engines what ours computes in every pass.
    """

    def __init__(self, tower: CompactEncoder, grid_thw: Tensor) -> None:
        super().__init__()
        rows = int(grid_thw.prod(1).sum())
        stream = pack(tower.config, grid_thw, torch.empty(rows, 0, device=next(tower.parameters()).device))
        self.tower = tower
        self.bounds = torch.tensor(stream.cu_seqlens)
        self.cos, self.sin = stream.cos, stream.sin

    def forward(self, pixels: Tensor) -> Tensor:
        """T x (C * frames * patch^2) -> T / merge^2 x the language model's width."""
        x = self.tower.blocks(self.tower.patch_embed(pixels), self.bounds, self.cos, self.sin)
        merged: Tensor = self.tower.merger(x)
        return merged


def plain_module(tower: CompactEncoder, pixels: Tensor, grid_thw: Tensor) -> nn.Module:
    """``FixedPack`` as a graph of PyTorch's own operators: ours are replaced with their plain definitions."""
    tower_on_pack = FixedPack(tower, grid_thw).eval()
    graph: Any = torch.export.export(tower_on_pack, (pixels,)).module()
    ours = getattr(torch.ops, NAMESPACE)
    definitions: dict[Any, Callable[..., Any]] = {getattr(ours, n).default: getattr(plain, n) for n in SCHEMAS}
    definitions[ours.attention.default] = fixed_attention(tower_on_pack.bounds.diff().tolist())
    for node in graph.graph.nodes:
        node.target = definitions.get(node.target, node.target)
    graph.recompile()
    module: nn.Module = graph
    return module


def fixed_attention(lengths: list[int]) -> Callable[..., Tensor]:
    """``plain.attention`` for sequences of these lengths; an exporter cannot look at the bounds' values."""

    def attention(q: Tensor, k: Tensor, v: Tensor, cu_seqlens: Tensor, scale: float) -> Tensor:
        q, k, v = (part.transpose(0, 1)[None] for part in (q, k, v))  # 1 x heads x T x head_dim
        sequences = zip(*(torch.split(part, lengths, dim=2) for part in (q, k, v)), strict=True)
        attended = [F.scaled_dot_product_attention(q, k, v, scale=scale) for q, k, v in sequences]
        return torch.cat([z[0].transpose(0, 1).flatten(1) for z in attended])

    return attention


def export_onnx(tower: CompactEncoder, pixels: Tensor, grid_thw: Tensor, path: Path) -> None:
    """Write the tower for packs of these grids to one ONNX file; its input and output are ``FixedPack``'s."""
    with torch.no_grad(), quiet():
        module = plain_module(tower, pixels, grid_thw)
        torch.onnx.export(module, (pixels,), path, dynamo=True, opset_version=OPSET, external_data=False, verbose=False)


@contextmanager
def quiet() -> Iterator[None]:
    """Exporters warn of what they do not need and of what they do not fold; none of it is the user's business."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
