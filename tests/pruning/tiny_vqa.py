"""A small random Qwen2-VL and question-answer batches for it; run as a script it trains gates in its own process."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, Qwen2VLConfig, Qwen2VLForConditionalGeneration

from infoprune_rt.pruning import head_training
from infoprune_rt.pruning.head_training import HeadTrainingSettings, train_heads
from infoprune_rt.towers import adapter_for

NUM_BLOCKS, NUM_HEADS, HEAD_DIM = 3, 3, 8
IMAGE_TOKEN, VISION_START, VISION_END, EOS, VOCABULARY = 30, 31, 32, 33, 40


def tiny_vlm(seed: int = 0, dtype: torch.dtype = torch.float32) -> Qwen2VLForConditionalGeneration:
    """Weights large enough that the answer depends on every head."""
    torch.manual_seed(seed)
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": VOCABULARY,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "bos_token_id": None,
            "eos_token_id": EOS,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]},
            "initializer_range": 0.3,
        },
        vision_config={
            "depth": NUM_BLOCKS,
            "embed_dim": NUM_HEADS * HEAD_DIM,
            "num_heads": NUM_HEADS,
            "mlp_ratio": 2,
            "hidden_size": 16,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "initializer_range": 0.3,
        },
        image_token_id=IMAGE_TOKEN,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        eos_token_id=EOS,
        initializer_range=0.3,
    )
    return Qwen2VLForConditionalGeneration(config).to(dtype)


def tiny_clip(seed: int = 0) -> CLIPVisionModel:
    torch.manual_seed(seed)
    config = CLIPVisionConfig(
        hidden_size=15, intermediate_size=20, num_hidden_layers=2, num_attention_heads=5, image_size=12, patch_size=4
    )
    return CLIPVisionModel(config).eval()


class TinyBatches:
    """Item i is a pure function of i: an image of 2 x 2 or 2 x 3 merged patches, two words, an answer and EOS."""

    def __init__(self, count: int = 29, *, dtype: torch.dtype = torch.float32, nan_item: int | None = None) -> None:
        self.count, self.dtype, self.nan_item = count, dtype, nan_item

    @property
    def digest(self) -> str:
        return "tiny"

    def __len__(self) -> int:
        return self.count

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        rows, pixels, grids = [], [], []
        for i in indices:
            generator = torch.Generator().manual_seed(i)
            width = 4 + 2 * (i % 2)
            grids.append([1, 4, width])
            pixels.append(torch.randn(4 * width, 3 * 2 * 4 * 4, generator=generator).to(self.dtype))
            if i == self.nan_item:
                pixels[-1][0, 0] = float("nan")
            question = torch.randint(0, 20, (2,), generator=generator).tolist()
            rows.append([VISION_START, *[IMAGE_TOKEN] * width, VISION_END, *question, 20 + i % 7, EOS])
        longest = max(len(row) for row in rows)
        ids = torch.tensor([[EOS] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        labels = torch.full_like(ids, -100)
        labels[:, -2:] = ids[:, -2:]
        return {
            "input_ids": ids,
            "attention_mask": mask,
            "mm_token_type_ids": (ids == IMAGE_TOKEN).long(),
            "pixel_values": torch.cat(pixels),
            "image_grid_thw": torch.tensor(grids),
            "labels": labels,
        }


def main(job: Path) -> None:
    """``job`` is JSON: dtype, fork, and ``runs``: settings and directory of each.

    With ``fork`` each run has a process of its own and may be killed with -9: just before update ``die_at_step``, or
    as it flushes file number ``die_at_flush``, when that is written but not yet in place.
    """
    torch.set_num_threads(1)
    plan = json.loads(job.read_text())
    for run in plan["runs"]:
        if not plan["fork"]:
            _train(run, getattr(torch, plan["dtype"]))
        elif (child := os.fork()) == 0:
            _train(run, getattr(torch, plan["dtype"]))
            os._exit(0)
        else:
            _, status = os.waitpid(child, 0)
            run["exit"] = os.waitstatus_to_exitcode(status)
    if plan["fork"]:
        job.write_text(json.dumps(plan))


def _train(run: dict[str, Any], dtype: torch.dtype) -> None:
    head_training.plot = lambda *_: None  # type: ignore[assignment]  # a second each, and tested elsewhere
    if "die_at_step" in run:
        _die_at_call(head_training._Trainer, "_step", run["die_at_step"])
    if "die_at_flush" in run:
        _die_at_call(os, "fsync", run["die_at_flush"])
    model = tiny_vlm(dtype=dtype)
    settings = HeadTrainingSettings(**run["settings"])
    train_heads(model, adapter_for(model.config), TinyBatches(dtype=dtype), settings, Path(run["out_dir"]))


def _die_at_call(owner: Any, name: str, number: int) -> None:
    real, calls = getattr(owner, name), count(1)

    def deadly(*args: Any) -> Any:
        if next(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)

    setattr(owner, name, deadly)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
