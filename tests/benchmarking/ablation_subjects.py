"""A random Qwen2-VL of two blocks and a few handwriting scenes on disk: all that the ablations do, in seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from transformers import Qwen2VLConfig

from infoprune_rt.benchmarking.ablations.options import Options
from infoprune_rt.demo.handwriting import write_handwriting
from infoprune_rt.demo.tiny_vlm import build_config, build_model, build_processor, build_tokenizer

BLOCKS, HEADS, SCENES = 2, 4, 2
SMALL = replace(
    Options().quick(),
    steps=2,
    batch_size=4,
    removed=(0.5,),
    epsilons=(0.01,),
    ranks=(0.5,),
    neurons=(0.5,),
    followed_steps=4,
    task_every=2,
    linear_shares=(0.5,),
)


def save_small_vlm(folder: Path) -> None:
    """A dense checkpoint with its processor."""
    torch.manual_seed(0)
    values = build_config(build_tokenizer()).to_dict()
    values["vision_config"] |= {"depth": BLOCKS, "embed_dim": 64, "num_heads": HEADS, "mlp_ratio": 2}
    build_model(Qwen2VLConfig(**values)).save_pretrained(folder)
    build_processor().save_pretrained(folder)


def draw_scenes(folder: Path) -> list[str]:
    """Scenes to learn and to test on, and the options that name their official files."""
    write_handwriting(folder / "train", "train", SCENES, seed=1)
    write_handwriting(folder / "test", "test", SCENES, seed=2)
    return _named(folder / "train", "--") + _named(folder / "test", "--test-")


def _named(folder: Path, prefix: str) -> list[str]:
    files = ("v2_OpenEnded_handwriting_questions.json", "TextVQA_handwriting.json", "gqa_handwriting_questions.json")
    asked = [word for name in files for word in (f"{prefix}data", str(folder / name))]
    answers = str(folder / "v2_handwriting_annotations.json")
    return [*asked, f"{prefix}annotations", answers, f"{prefix}images", str(folder / "images")]
