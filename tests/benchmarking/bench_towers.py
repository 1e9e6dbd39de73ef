"""A small compact tower with every kind of block, as a subject of the benchmark."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModel
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig

from infoprune_rt.benchmarking.cpu_tower.cases import Case, Subject
from infoprune_rt.runtime.encoder import CompactEncoder
from infoprune_rt.towers import adapter_by_name

BLOCKS = [
    {"num_heads": 4, "ffn": "dense"},
    {"num_heads": 0, "ffn": "lowrank", "size": 7},
    {"num_heads": 3, "ffn": "merged"},
    {"num_heads": 1, "ffn": "neurons", "size": 33, "activation": "gelu"},
]
RAGGED = Case(((4, 6), (2, 2), (2, 2), (8, 10)), threads=1, blocks=len(BLOCKS))


def small_tower() -> CompactEncoder:
    dense = Qwen2VLVisionConfig(depth=len(BLOCKS), embed_dim=64, hidden_size=48, num_heads=4, mlp_ratio=2)
    tower: CompactEncoder = AutoModel.from_config(adapter_by_name("qwen2_vl").compact_config(dense, BLOCKS)).eval()
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.1 if parameter.ndim > 1 else 0.3)
    tower.backend = "plain"
    return tower


def small_subject(folder: Path) -> Subject:
    subject = Subject(RAGGED, folder)
    subject.compact = small_tower()
    return subject
