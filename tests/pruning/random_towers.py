"""Small random towers of both architectures for compaction tests, and what their plans need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, PretrainedConfig
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig

from infoprune_rt.plan import BlockPlan, FFNPlan, Plan
from infoprune_rt.pruning.apply import Applied
from infoprune_rt.towers import adapter_by_name
from infoprune_rt.towers.base import TowerAdapter

ARCHITECTURES = ("qwen2_vl", "clip")
GRIDS = ((1, 6, 10), (1, 2, 4), (1, 8, 4))


def config(architecture: str) -> PretrainedConfig:
    if architecture == "qwen2_vl":
        return Qwen2VLVisionConfig(depth=4, embed_dim=36, num_heads=3, hidden_size=20, mlp_ratio=3, patch_size=4)
    sizes = {"hidden_size": 42, "num_attention_heads": 3, "intermediate_size": 100, "num_hidden_layers": 4}
    return CLIPVisionConfig(**sizes, image_size=20, patch_size=4, projection_dim=8)


def random_tower(architecture: str) -> tuple[nn.Module, TowerAdapter]:
    adapter = adapter_by_name(architecture)
    tower = adapter.build(config(architecture)).eval()
    with torch.no_grad():
        for name, parameter in tower.named_parameters():
            parameter.normal_(std=parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.2)
            if "norm" in name and name.endswith("weight"):
                parameter.add_(1)
    return tower, adapter


def random_batch(architecture: str, grids: Sequence[tuple[int, int, int]] = GRIDS) -> dict[str, Tensor]:
    """Tower inputs with one image per grid (CLIP: as many images, all of its own size)."""
    if architecture == "qwen2_vl":
        grid_thw = torch.tensor(grids)
        return {"hidden_states": torch.randn(int(grid_thw.prod(1).sum()), 3 * 2 * 16), "grid_thw": grid_thw}
    return {"pixel_values": torch.randn(len(grids), 3, 20, 20)}


def make_plan(
    architecture: str,
    heads: Sequence[Sequence[int]],
    ffn: FFNPlan | Sequence[FFNPlan] = FFNPlan(),  # noqa: B008  (frozen)
    *,
    refit: bool = False,
    sequential: bool = False,
) -> Plan:
    shape = adapter_by_name(architecture).shape(config(architecture))
    ffns = [ffn] * len(heads) if isinstance(ffn, FFNPlan) else ffn
    blocks = tuple(BlockPlan(tuple(kept), one) for kept, one in zip(heads, ffns, strict=True))
    return Plan(architecture, shape, blocks, refit=refit, sequential=sequential)


def with_zeta(plan: Plan) -> Plan:
    """The same plan with a random factor for every kept head."""
    blocks = tuple(replace(b, zeta=tuple((torch.rand(len(b.heads)) + 0.25).tolist())) for b in plan.blocks)
    return replace(plan, blocks=blocks)


def compact_tower(architecture: str, applied: Applied) -> nn.Module:
    """The compact tower of an applied plan; every tensor must be there, and no other."""
    compact = adapter_by_name(architecture).compact_class
    raw = config(architecture).to_dict()
    raw.pop("model_type")
    tower = compact(compact.config_class(**raw, blocks=applied.specs)).eval()
    tower.load_state_dict(applied.state, strict=True)
    return tower


def last_hidden(tower: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """T x d after the last block."""
    with torch.no_grad():
        states: Tensor = tower(**batch).last_hidden_state
    return states.flatten(0, -2)


def doubled(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
