"""Small random models of the real classes, and prompts for them with pictures anywhere among the text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlavaConfig, LlavaForConditionalGeneration, PreTrainedModel, Qwen2VLConfig
from transformers import Qwen2VLForConditionalGeneration as Qwen2VL

WORDS, IMAGE, VIDEO = 30, 30, 31
LAYERS, HEADS, HEAD_DIM, FFN = 4, 6, 8, 20
KV_HEADS = {"qwen2_vl": 2, "llava": 3}
SIDE = 3  # of a LLaVA picture, in patches
MODELS = ("qwen2_vl", "llava")

Segment = int | tuple[int, ...]  # so many words, or a picture's rows and columns, or a video's frames, rows and columns


def _text(kind: str) -> dict[str, Any]:
    return {
        "vocab_size": 40,
        "hidden_size": HEADS * HEAD_DIM,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS[kind],
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }


def _qwen2_vl() -> PreTrainedModel:
    rope = {"rope_type": "default", "rope_theta": 1e3, "mrope_section": [2, 1, 1]}
    config = Qwen2VLConfig(
        text_config=_text("qwen2_vl") | {"rope_parameters": rope},
        vision_config={"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": HEADS * HEAD_DIM, "patch_size": 4},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=32,
        vision_end_token_id=33,
        tie_word_embeddings=False,
    )
    return Qwen2VL(config)


def _llava() -> PreTrainedModel:
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 4 * SIDE,
        "patch_size": 4,
    }
    text = {"model_type": "llama", "attention_bias": True, "mlp_bias": True} | _text("llava")
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE)
    return LlavaForConditionalGeneration(config)


def fresh(kind: str, seed: int = 0) -> PreTrainedModel:
    """Weights large enough that logits depend on every part."""
    model = {"qwen2_vl": _qwen2_vl, "llava": _llava}[kind]()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.25, generator=generator)
    model.generation_config.pad_token_id = 0
    return model.eval().requires_grad_(False)


@cache
def small(kind: str, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """One for all tests, which leave it as it was."""
    return fresh(kind).to(dtype)


def prompt(model: PreTrainedModel, segments: Sequence[Segment], seed: int = 0) -> dict[str, Tensor]:
    """What the model's processor would give: words and pictures in this order; a LLaVA's pictures are all 3 x 3."""
    generator = torch.Generator().manual_seed(seed)
    ids: list[int] = []
    grids: dict[int, list[list[int]]] = {IMAGE: [], VIDEO: []}
    for segment in segments:
        if isinstance(segment, int):
            ids += torch.randint(1, WORDS, (segment,), generator=generator).tolist()
        elif model.config.model_type == "llava":
            ids += [IMAGE] * SIDE**2
            grids[IMAGE].append([SIDE, SIDE])
        else:
            frames, rows, columns = segment if len(segment) == 3 else (1, *segment)
            token = VIDEO if len(segment) == 3 else IMAGE
            ids += [token] * (frames * rows * columns)
            grids[token].append([frames, 2 * rows, 2 * columns])
    input_ids = torch.tensor([ids])
    found: dict[str, Tensor] = {"input_ids": input_ids}
    if model.config.model_type == "llava":
        size = (len(grids[IMAGE]), 3, 4 * SIDE, 4 * SIDE)
        return found | {"pixel_values": torch.randn(size, generator=generator).to(model.dtype)}
    found["mm_token_type_ids"] = (input_ids == IMAGE).int() + 2 * (input_ids == VIDEO).int()
    for token, pixels, grid in ((IMAGE, "pixel_values", "image"), (VIDEO, "pixel_values_videos", "video")):
        if grids[token]:
            found[f"{grid}_grid_thw"] = torch.tensor(grids[token])
            patches = int(found[f"{grid}_grid_thw"].prod(-1).sum())
            found[pixels] = torch.randn(patches, 96, generator=generator).to(model.dtype)
    return found


@torch.no_grad()
def answer(model: PreTrainedModel, inputs: dict[str, Tensor], words: Sequence[Sequence[int]]) -> list[Tensor]:
    """Logits [rows, vocabulary] in float64 of the prompt's text rows, then of each further step from the cache."""
    output = model(**inputs, use_cache=True)
    is_text = (inputs["input_ids"][0] != IMAGE) & (inputs["input_ids"][0] != VIDEO)
    found = [output.logits[0, is_text]]
    for step in words:
        output = model(input_ids=torch.tensor([step]), past_key_values=output.past_key_values, use_cache=True)
        found.append(output.logits[0])
    return [logits.double() for logits in found]


@contextmanager
def in_full_precision(model: PreTrainedModel) -> Iterator[PreTrainedModel]:
    """A float64 model whose softmax and norms are float64, too: transformers computes them in float32 otherwise."""
    softmax, norms = F.softmax, [m for m in model.model.language_model.modules() if "RMSNorm" in type(m).__name__]
    F.softmax = lambda x, dim, dtype=None: softmax(x, dim=dim)  # type: ignore[assignment]
    for norm in norms:
        norm.forward = lambda x, norm=norm: (
            norm.weight * x * (x.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()
        )
    try:
        yield model
    finally:
        F.softmax = softmax
        for norm in norms:
            del norm.forward
