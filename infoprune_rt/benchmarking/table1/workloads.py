"""What Table 1's models are asked: real photographs at stated sizes, and a short question about them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from infoprune_rt.errors import InfopruneError

QUESTION_TOKENS = 24  # around the pictures; drawn at random, since what they mean costs no time
PHOTOGRAPHS = ("china.jpg", "flower.jpg")  # scikit-learn's, 640 x 427, resized


@dataclass(frozen=True)
class Workload:
    """One prompt. sizes: width and height of each of its pictures, in pixels."""

    name: str
    sizes: tuple[tuple[int, int], ...]
    about: str


WORKLOADS = {
    each.name: each
    for each in (
        Workload("native", ((112, 112),), "a scene as the tiny VLM was trained on"),
        Workload("coco", ((640, 480),), "one COCO picture"),
        Workload("textvqa", ((1024, 768),), "one TextVQA picture"),
        Workload("highres", ((1540, 1540),), "the most plausible reading of the paper's workload"),
        Workload("mixed", ((640, 480), (320, 240), (1024, 768), (224, 448)), "four pictures in one prompt"),
    )
}


def workload(name: str) -> Workload:
    """By name."""
    if name not in WORKLOADS:
        raise InfopruneError(f"unknown workload {name!r}; known are {', '.join(WORKLOADS)}")
    return WORKLOADS[name]


def pictures(work: Workload) -> list[Image.Image]:
    """Real photographs, resized to the workload's sizes."""
    from sklearn.datasets import load_sample_image

    sources = [Image.fromarray(load_sample_image(name)) for name in PHOTOGRAPHS]
    return [sources[i % len(sources)].resize(size, Image.Resampling.BICUBIC) for i, size in enumerate(work.sizes)]


def prompt(config: Any, pixels: dict[str, Tensor]) -> dict[str, Tensor]:
    """A Qwen2-VL model's inputs: the pictures, each between its marks, in the middle of a question.

    pixels: the image processor's ``pixel_values`` and ``image_grid_thw``.
    """
    merge = config.vision_config.spatial_merge_size
    marks = (config.vision_start_token_id, config.vision_end_token_id, config.image_token_id)
    words = _words(config, marks)
    ids = words[: len(words) // 2]
    for grid in pixels["image_grid_thw"].prod(1).tolist():
        ids += [marks[0], *[marks[2]] * (grid // merge**2), marks[1]]
    tokens = torch.tensor([ids + words[len(words) // 2 :]])
    return {
        "input_ids": tokens,
        "attention_mask": torch.ones_like(tokens),
        "mm_token_type_ids": (tokens == config.image_token_id).long(),
        **pixels,
    }


def _words(config: Any, marks: Sequence[int]) -> list[int]:
    """Ordinary tokens: none that marks a picture, a video or an end."""
    text = config.text_config
    special = {*marks, config.video_token_id, text.bos_token_id, text.eos_token_id, text.pad_token_id}
    chosen = torch.randperm(min(text.vocab_size, 1000), generator=torch.Generator().manual_seed(0)).tolist()
    ordinary = [token for token in chosen if token not in special]
    return (ordinary * QUESTION_TOKENS)[:QUESTION_TOKENS]
