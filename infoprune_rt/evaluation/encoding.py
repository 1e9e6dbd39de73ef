"""Prompts and images as model inputs, each image processed once however many questions ask about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from transformers.processing_utils import ProcessorMixin


@dataclass(frozen=True)
class EncodedPrompts:
    """tokens: per-token inputs (B x N, int64, padded on the left). images: the image processor's output for
    the different images. image_of: for every prompt its row among those images."""

    tokens: dict[str, Tensor]
    images: dict[str, Tensor]
    image_of: list[int]


def encode_prompts(
    processor: ProcessorMixin, prompts: Sequence[str], images: Sequence[Image.Image], image_of: Sequence[int]
) -> EncodedPrompts:
    """Expand the image token of ``prompts[i]`` for ``images[image_of[i]]`` and tokenise, padded on the left.

    The same tokens as ``processor(text=prompts, images=[images[j] for j in image_of], padding=True)``.
    """
    features = processor.image_processor(list(images), return_tensors="pt")
    placeholders = [processor.replace_image_token(features, i) for i in range(len(images))]
    texts = [
        prompt.replace(processor.image_token, placeholders[image], 1)
        for prompt, image in zip(prompts, image_of, strict=True)
    ]
    tokens = dict(processor.tokenizer(texts, padding=True, padding_side="left", return_tensors="pt"))
    if "mm_token_type_ids" in processor.model_input_names:
        tokens["mm_token_type_ids"] = torch.tensor(processor.create_mm_token_type_ids(tokens["input_ids"]))
    return EncodedPrompts(tokens, dict(features), list(image_of))
