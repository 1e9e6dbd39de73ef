"""Small compact towers and full models with every kind of block, for the tests of what is written to disk."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLConfig, Qwen2VLVisionConfig

from infoprune_rt.plan import BlockPlan, FFNPlan, Plan
from infoprune_rt.runtime.encoder import CompactEncoder
from infoprune_rt.towers import adapter_by_name

ARCHITECTURES = ("qwen2_vl", "clip")
IMAGE_TOKEN = 40
BLOCKS: list[dict[str, Any]] = [
    {"num_heads": 1, "ffn": "lowrank", "size": 7},
    {"num_heads": 0, "ffn": "merged", "size": None},
    {"num_heads": 3, "ffn": "neurons", "size": 19},
    {"num_heads": 2, "ffn": "dense", "size": None},
    {"num_heads": 1, "ffn": "neurons", "size": 9, "activation": "silu"},
    {"num_heads": 2, "ffn": "hybrid", "size": 12, "linear": 5},
]


def vision_config(architecture: str) -> PretrainedConfig:
    if architecture == "qwen2_vl":
        return Qwen2VLVisionConfig(depth=6, embed_dim=24, hidden_size=16, num_heads=3, mlp_ratio=2, patch_size=4)
    return CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=50,
        num_hidden_layers=6,
        num_attention_heads=3,
        image_size=12,
        patch_size=4,
        projection_dim=8,
    )


def vlm_config(architecture: str, tied: bool = False) -> PretrainedConfig:
    text: dict[str, Any] = {
        "vocab_size": 50,
        "hidden_size": 16,
        "intermediate_size": 20,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    vision = vision_config(architecture)
    if architecture == "clip":
        return LlavaConfig(
            vision_config=vision,
            text_config=LlamaConfig(**text),
            image_token_index=IMAGE_TOKEN,
            tie_word_embeddings=tied,
        )
    rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}
    return Qwen2VLConfig(
        text_config=text | {"rope_parameters": rope},
        vision_config=vision.to_dict(),
        image_token_id=IMAGE_TOKEN,
        video_token_id=41,
        vision_start_token_id=42,
        vision_end_token_id=43,
        tie_word_embeddings=tied,
    )


def make_plan(architecture: str) -> Plan:
    """A resolved plan whose blocks are ``BLOCKS``."""
    modes = {"lowrank": "rrr", "merged": "taylor", "neurons": "neurons", "dense": "dense", "hybrid": "hybrid"}
    blocks = tuple(
        BlockPlan(
            heads=tuple(range(block["num_heads"])),
            ffn=FFNPlan(
                mode=modes[block["ffn"]],
                size=block["size"] or 20,
                kind=block["ffn"],
                fitted_linear=block.get("linear"),
            )
            if "activation" not in block
            else FFNPlan(mode="rrr", size=block["size"], between=block["activation"], kind=block["ffn"]),
        )
        for block in BLOCKS
    )
    return Plan(architecture, adapter_by_name(architecture).shape(vision_config(architecture)), blocks)


def compact_tower(architecture: str, dtype: torch.dtype = torch.float32) -> CompactEncoder:
    """A compact tower whose every parameter is random."""
    adapter = adapter_by_name(architecture)
    tower = adapter.compact_class(adapter.compact_config(vision_config(architecture), BLOCKS))
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.normal_(std=0.3)
    tower.plan = make_plan(architecture)
    tower.to(dtype)
    tower.eval()
    return tower


def full_model(architecture: str, tied: bool = False) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForImageTextToText.from_config(vlm_config(architecture, tied))
    model.eval()
    return model


def tower_inputs(architecture: str) -> dict[str, Tensor]:
    if architecture == "qwen2_vl":
        return {"hidden_states": torch.randn(24, 96), "grid_thw": torch.tensor([[1, 4, 6]])}
    return {"pixel_values": torch.randn(1, 3, 12, 12)}


def model_inputs(architecture: str) -> dict[str, Tensor]:
    """One image between a few words."""
    features = tower_inputs(architecture)
    image_tokens = [IMAGE_TOKEN] * (6 if architecture == "qwen2_vl" else 9)
    words = [3, 42, *image_tokens, 43, 5] if architecture == "qwen2_vl" else [3, *image_tokens, 5]
    ids = torch.tensor([words])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if architecture == "clip":
        return inputs | features
    return inputs | {
        "pixel_values": features["hidden_states"],
        "image_grid_thw": features["grid_thw"],
        "mm_token_type_ids": (ids == IMAGE_TOKEN).long(),
    }
