"""Small, randomly weighted instances of the real tower classes, and inputs of odd sizes for them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, PretrainedConfig
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLConfig, Qwen2VLVisionConfig

from infoprune_rt.towers import adapter_by_name

ARCHITECTURES = ("qwen2_vl", "clip")
GRIDS = torch.tensor([[1, 2, 2], [1, 6, 10], [2, 4, 2], [1, 14, 4]])  # ragged, one two-frame video


def vision_config(architecture: str) -> PretrainedConfig:
    if architecture == "qwen2_vl":
        return Qwen2VLVisionConfig(depth=3, embed_dim=40, hidden_size=24, num_heads=5, mlp_ratio=3, patch_size=6)
    return CLIPVisionConfig(
        hidden_size=42,
        intermediate_size=100,
        num_hidden_layers=3,
        num_attention_heads=3,
        image_size=35,
        patch_size=7,
        projection_dim=8,
    )


def vlm_config(architecture: str) -> PretrainedConfig:
    text: dict[str, Any] = {
        "vocab_size": 50,
        "hidden_size": 24,
        "intermediate_size": 20,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    vision = vision_config(architecture)
    if architecture == "qwen2_vl":
        rope = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 2, 2]}
        tokens = {"image_token_id": 40, "video_token_id": 41, "vision_start_token_id": 42, "vision_end_token_id": 43}
        ends = {"bos_token_id": 0, "eos_token_id": 1}
        return Qwen2VLConfig(
            text_config=text | ends | {"rope_parameters": rope},
            vision_config=vision.to_dict(),
            **tokens,
        )
    return LlavaConfig(vision_config=vision, text_config=LlamaConfig(**text), image_token_index=40)


def tower(architecture: str, seed: int = 0) -> nn.Module:
    """A tower whose every parameter is random: norms and biases too, which transformers starts at 1 and 0.

    The weights depend on ``seed`` alone; what a test draws afterwards stays fresh.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = adapter_by_name(architecture).build(vision_config(architecture)).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.normal_(std=parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.2)
                if "norm" in name and name.endswith("weight"):
                    parameter.add_(1)
    return model


def tower_inputs(architecture: str, grids: Tensor = GRIDS, images: int = 3) -> dict[str, Tensor]:
    """What the tower's forward takes, freshly random; ``images`` counts for CLIP, ``grids`` for Qwen2-VL."""
    config = vision_config(architecture)
    if architecture == "qwen2_vl":
        pixels = config.in_channels * config.temporal_patch_size * config.patch_size**2
        return {"hidden_states": torch.randn(int(grids.prod(-1).sum()), pixels), "grid_thw": grids}
    return {"pixel_values": torch.randn(images, 3, config.image_size, config.image_size)}


def double(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same inputs in fp64; grids stay whole numbers."""
    return {name: tensor.double() if tensor.is_floating_point() else tensor for name, tensor in inputs.items()}


def vlm_inputs(architecture: str) -> dict[str, Tensor]:
    """One image between a few words of text."""
    features = tower_inputs(architecture, torch.tensor([[1, 4, 6]]), images=1)
    image_tokens = 6 if architecture == "qwen2_vl" else 25
    around = ([3, 42], [43, 5, 6]) if architecture == "qwen2_vl" else ([3], [5, 6])
    ids = torch.tensor([[*around[0], *[40] * image_tokens, *around[1]]])
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if architecture == "clip":
        return inputs | features
    return inputs | {
        "pixel_values": features["hidden_states"],
        "image_grid_thw": features["grid_thw"],
        "mm_token_type_ids": (ids == 40).long(),
    }


def assert_as_good(mine: Any, theirs: Any, exact: Any) -> None:
    """Every field as near the fp64 truth as transformers' own run, within a factor of two."""
    assert list(mine.keys()) == list(theirs.keys())
    for name in theirs:
        for ours, their, truth in zip(*(_tensors(output[name]) for output in (mine, theirs, exact)), strict=True):
            assert ours.shape == their.shape
            assert ours.dtype == their.dtype
            assert (ours.double() - truth).abs().max() <= 2 * (their.double() - truth).abs().max() + 1e-6


def _tensors(value: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (value,) if isinstance(value, Tensor) else value
