"""A Qwen2-VL of a few thousand weights with everything that Table 1 needs."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessorPil

from infoprune_rt.baselines.yopo import YopoSettings
from infoprune_rt.benchmarking.table1.subject import Subject
from infoprune_rt.benchmarking.table1.workloads import Workload
from infoprune_rt.compression import compress
from infoprune_rt.plan import BlockPlan, FFNPlan, Plan
from infoprune_rt.towers import adapter_by_name

WORK = Workload("small", ((84, 56), (56, 112)), "two small pictures")
BLOCKS = (
    BlockPlan((0, 2, 3), FFNPlan(mode="rrr", size=16)),
    BlockPlan((), FFNPlan(mode="neurons", size=48)),
    BlockPlan((1,), FFNPlan(mode="rrr", size=48)),  # merged: more than half the width
    BlockPlan((0, 1, 2, 3)),
)


def config() -> Qwen2VLConfig:
    text = {
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 300,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2]},
        "bos_token_id": 296,
        "eos_token_id": 297,
        "pad_token_id": 296,
    }
    vision = {"depth": 4, "embed_dim": 64, "num_heads": 4, "mlp_ratio": 2, "hidden_size": 48}
    marks = {"image_token_id": 295, "video_token_id": 294, "vision_start_token_id": 293, "vision_end_token_id": 292}
    return Qwen2VLConfig(text_config=text, vision_config=vision, **marks)


def subject(dtype: torch.dtype = torch.float32, kernels: str = "csrc") -> Subject:
    torch.manual_seed(0)
    model: Any = Qwen2VLForConditionalGeneration._from_config(config(), attn_implementation="sdpa").eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.08)
    adapter = adapter_by_name("qwen2_vl")
    tower = adapter.tower_of(model)
    plan = Plan("qwen2_vl", adapter.shape(tower.config), BLOCKS, refit=True, sequential=False)
    grids = torch.tensor([[1, 4, 6], [1, 8, 10]])
    data = {"hidden_states": torch.randn(int(grids.prod(1).sum()), 1176), "grid_thw": grids}
    compact = compress(tower, adapter, plan, lambda: [data]).to(dtype)
    yopo = YopoSettings(heads=0.5, first_head_layer=1, layer_cut=3, radius=1, ffn_fraction=0.5)
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": 56 * 56, "longest_edge": 1 << 20})
    return Subject(model.to(dtype), adapter, processor, compact, yopo, "random", kernels)
