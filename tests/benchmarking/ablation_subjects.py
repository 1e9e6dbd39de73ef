"""A random Qwen2-VL of two blocks and a few handwriting scenes: everything the ablations do, in seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from transformers import Qwen2VLConfig

from infoprune_rt.benchmarking.ablations.options import Options
from infoprune_rt.benchmarking.ablations.subject import Data, Subject
from infoprune_rt.demo.handwriting import read_handwriting, write_handwriting
from infoprune_rt.demo.tiny_vlm import build_config, build_model, build_processor, build_tokenizer
from infoprune_rt.model_loading import LoadedVLM
from infoprune_rt.towers import adapter_for

NAME = "a random Qwen2-VL"
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


def small_vlm() -> LoadedVLM:
    torch.manual_seed(0)
    values = build_config(build_tokenizer()).to_dict()
    values["vision_config"] |= {"depth": 2, "embed_dim": 64, "num_heads": 4, "mlp_ratio": 2}
    model = build_model(Qwen2VLConfig(**values)).eval()
    return LoadedVLM(model, build_processor(), adapter_for(model.config))


def scenes(folder: Path) -> Data:
    for name, split, seed in (("calibration", "train", 1), ("test", "test", 2)):
        if not (folder / name).exists():
            write_handwriting(folder / name, split, 2, seed)
    return Data(*(read_handwriting(folder / name) for name in ("calibration", "test")))


def small_subject(folder: Path, options: Options = SMALL) -> Subject:
    return Subject(NAME, small_vlm(), scenes(folder / "scenes"), options, folder / "work")
