"""Which heads see: YOPO's statistic, calibrated on real inputs, and the masks that come of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from infoprune_rt.baselines.decoder import decoder_of
from infoprune_rt.baselines.eager import eager_attention
from infoprune_rt.errors import InfopruneError
from infoprune_rt.files import write_text

HeadMasks = tuple[tuple[bool, ...], ...]  # one row per layer, one entry per query head; True: the head stays
_KIND = "yopo head masks"


@torch.no_grad()
def head_ratios(model: PreTrainedModel, batches: Iterable[Mapping[str, Any]]) -> Tensor:
    """r = sum of A over visual keys / sum of A over text keys, per layer and query head: [layers, heads], float64.

    The sums run over all queries of all prompts (method.md section 4, which does not say which queries: all are our
    reading); padding is left out. A: attention weights, from transformers' eager attention. batches: keyword arguments
    of the model (input_ids, attention_mask, pixel_values, ...); any batch size. One layer's weights of one batch are in
    memory at a time.
    """
    decoder = decoder_of(model)
    sums = torch.zeros(decoder.shape.layers, decoder.shape.heads, 2, dtype=torch.float64)
    roles: list[Tensor] = []
    with eager_attention(decoder.text_model):
        hooks = [
            layer.self_attn.register_forward_hook(_adder(sums[index], roles))
            for index, layer in enumerate(decoder.layers)
        ]
        try:
            for batch in batches:
                roles[:] = [_roles(decoder.is_visual(batch["input_ids"]), batch.get("attention_mask"))]
                model(**batch, use_cache=False, logits_to_keep=1)
        finally:
            for hook in hooks:
                hook.remove()
    if not sums[..., 0].any():
        raise InfopruneError("no visual token was seen in calibration; give prompts with pictures")
    return sums[..., 0] / sums[..., 1]


def keep_highest(ratios: Tensor, share: float) -> HeadMasks:
    """Masks that keep this share of every layer's heads: those with the highest ratio [layers, heads]."""
    kept = ratios.argsort(dim=1, descending=True)[:, : round(ratios.shape[1] * share)]
    masks = torch.zeros_like(ratios, dtype=torch.bool).scatter_(1, kept.to(ratios.device), True)
    return tuple(tuple(row) for row in masks.tolist())


def keep_evenly(layers: int, heads: int, share: float) -> HeadMasks:
    """Masks that keep this share of every layer's heads, spread evenly over them (and so over the KV heads)."""
    count = round(heads * share)
    row = tuple((head + 1) * count // heads > head * count // heads for head in range(heads))
    return (row,) * layers


def write_masks(path: Path, masks: HeadMasks) -> None:
    """As JSON, aside and then renamed."""
    rows = [[int(stays) for stays in row] for row in masks]
    lines = ",\n  ".join(json.dumps(row) for row in rows)
    write_text(Path(path), f'{{"kind": {json.dumps(_KIND)}, "live_heads": [\n  {lines}\n]}}\n')


def read_masks(path: Path) -> HeadMasks:
    """What ``write_masks`` wrote; InfopruneError names the file and what is wrong with it."""
    try:
        data = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise InfopruneError(f"{path} is not a readable file of head masks: {error}") from error
    rows = data.get("live_heads") if isinstance(data, dict) and data.get("kind") == _KIND else None
    if not _are_masks(rows):
        raise InfopruneError(f"{path} holds no head masks (equally long rows of 0 and 1); write it with write_masks")
    return tuple(tuple(bool(stays) for stays in row) for row in rows)


def _are_masks(rows: Any) -> TypeGuard[list[list[int]]]:
    if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
        return False
    return len({len(row) for row in rows}) == 1 and all(stays in (0, 1) for row in rows for stays in row)


def _roles(is_visual: Tensor, attention_mask: Tensor | None) -> Tensor:
    """[3, B, T]: visual keys, text keys, and queries that count."""
    real = torch.ones_like(is_visual) if attention_mask is None else attention_mask.bool()
    return torch.stack([is_visual & real, ~is_visual & real, real])


def _adder(sums: Tensor, roles: list[Tensor]) -> Callable[[nn.Module, Any, tuple[Tensor, Tensor]], None]:
    def hook(_module: nn.Module, _args: Any, output: tuple[Tensor, Tensor]) -> None:
        weights = output[1]  # [B, H, queries, keys]
        keys, queries = roles[0][:2].to(weights.dtype), roles[0][2].double()
        seen = torch.einsum("bhqk,rbk->bhqr", weights, keys).double()
        sums.add_(torch.einsum("bhqr,bq->hr", seen, queries).cpu())

    return hook
