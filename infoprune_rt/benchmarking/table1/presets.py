"""The models of Table 1: the shipped tiny VLM, and the published sizes with random weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration, Qwen2VLImageProcessorPil

from infoprune_rt.errors import InfopruneError
from infoprune_rt.towers import adapter_by_name

# What the published checkpoints' preprocessor_config.json says: up to 16384 patches.
PIXEL_LIMITS = {"shortest_edge": 3136, "longest_edge": 12845056}
_VISION = {"depth": 32, "embed_dim": 1280, "num_heads": 16, "mlp_ratio": 4}
_TEXT = {
    "num_hidden_layers": 28,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]},
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "pad_token_id": 151643,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-6,
}
_SIZES: dict[str, dict[str, Any]] = {
    "2b": {
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
        "vocab_size": 151936,
    },
    "7b": {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
    },
}
PRESETS = ("tiny", *_SIZES)
ADAPTER = adapter_by_name("qwen2_vl")


def published_config(name: str) -> Qwen2VLConfig:
    """Qwen2-VL-2B's or 7B's sizes."""
    if name not in _SIZES:
        raise InfopruneError(f"unknown preset {name!r}; known are {', '.join(PRESETS)}")
    text = _TEXT | _SIZES[name]
    vision = _VISION | {"hidden_size": text["hidden_size"]}
    return Qwen2VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=name == "2b")


def bytes_of(config: Qwen2VLConfig, dtype: torch.dtype) -> tuple[int, int]:
    """Of a model's weights (tied ones once), and of its tower's."""
    with torch.device("meta"):
        model = Qwen2VLForConditionalGeneration(config)
    counts = (sum(p.numel() for p in part.parameters()) for part in (model, ADAPTER.tower_of(model)))
    whole, tower = (count * dtype.itemsize for count in counts)
    return whole, tower


def random_tower(config: Qwen2VLConfig, dtype: torch.dtype) -> nn.Module:
    """transformers' tower with random weights from a fixed seed, in eval mode."""
    torch.manual_seed(0)
    vision = config.vision_config
    vision._attn_implementation = "sdpa"
    return ADAPTER.build(vision).to(dtype).eval()


def random_model(config: Qwen2VLConfig, dtype: torch.dtype, device: torch.device, tower: nn.Module) -> Any:
    """transformers' own class around a tower, the rest random from a fixed seed, in eval mode."""
    torch.manual_seed(1)
    model = Qwen2VLForConditionalGeneration._from_config(config, dtype=dtype, attn_implementation="sdpa")
    ADAPTER.replace_tower(model, tower)
    return model.to(device).eval()


def image_processor() -> Qwen2VLImageProcessorPil:
    """As the published checkpoints prepare pictures."""
    return Qwen2VLImageProcessorPil(size=PIXEL_LIMITS)
