"""The Qwen2-VL-7B tower at its true size, with random weights: compacted for real and timed on a photograph."""

from __future__ import annotations

import copy
import resource
import time
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig

from infoprune_rt.benchmarking.timing import interleaved
from infoprune_rt.compression import compress, make_plan
from infoprune_rt.plan import FFNPlan
from infoprune_rt.pruning.head_scores import magnitude_scores
from infoprune_rt.pruning.selection import budget
from infoprune_rt.runtime.blocks import block_specs, dense_specs
from infoprune_rt.runtime.costs import BlockCost, tower_costs
from infoprune_rt.runtime.encoder import CompactEncoder
from infoprune_rt.towers import adapter_by_name

PHOTOGRAPH = "china.jpg"
RANK = 128
Progress = Callable[[int, int], None]


def photograph() -> dict[str, Tensor]:
    """A real photograph (640 x 427, scikit-learn's) as the tower's inputs, at its native size."""
    from sklearn.datasets import load_sample_image

    pixels = Qwen2VLImageProcessorPil()([Image.fromarray(load_sample_image(PHOTOGRAPH))], return_tensors="pt")
    return adapter_by_name("qwen2_vl").tower_inputs(pixels)


def dense_tower(dtype: torch.dtype, blocks: int) -> nn.Module:
    """transformers' tower with the 7B's sizes and random weights from a fixed seed, in eval mode."""
    torch.manual_seed(0)
    config = Qwen2VLVisionConfig(depth=blocks)
    config._attn_implementation = "sdpa"
    tower = adapter_by_name("qwen2_vl").build(config).to(dtype)
    tower.eval()
    return tower


def compact_from(tower: nn.Module, inputs: dict[str, Tensor], progress: Progress | None = None) -> CompactEncoder:
    """Half of all heads (by weight magnitude: random weights have no importance) and rank-128 FFNs."""
    adapter = adapter_by_name("qwen2_vl")
    plan = make_plan(
        "qwen2_vl",
        adapter.shape(tower.config),
        masks=budget(magnitude_scores(tower, adapter), keep=0.5),
        ffn=FFNPlan(mode="rrr", size=RANK),
        refit=False,  # nothing to save: random weights answer nothing
        sequential=False,
    )
    return compress(tower, adapter, plan, lambda: [inputs], progress)


def measure(
    dtype: torch.dtype, repeats: int, blocks: int = 32, progress: Progress | None = None, kernels: bool = False
) -> dict[str, Any]:
    """Compact the full-size tower, then time it against transformers' dense one, interleaved.

    ``compact_ms`` is the tower on the fastest backend of this machine, as it comes. kernels: on plain PyTorch instead,
    and on the C++ kernels beside it (``csrc_ms``).
    """
    inputs = photograph()
    tower = dense_tower(dtype, blocks)
    began = time.perf_counter()
    compact = compact_from(tower, inputs, progress)
    seconds = time.perf_counter() - began
    towers: dict[str, Any] = {"dense": tower, "compact": compact}
    if kernels:
        towers["csrc"] = copy.deepcopy(compact)
        compact.backend, towers["csrc"].backend = "plain", "csrc"
    with torch.inference_mode():
        runs = {name: lambda model=model: model(**inputs) for name, model in towers.items()}
        times = interleaved(runs, repeats)
    shape = adapter_by_name("qwen2_vl").shape(compact.config)
    specs = block_specs(compact.config.blocks, shape)
    patches = len(inputs["hidden_states"])
    cost = sum(tower_costs(specs, shape, [patches]), BlockCost())
    dense_cost = sum(tower_costs(dense_specs(shape), shape, [patches]), BlockCost())
    best = {name: sorted(all_ms)[len(all_ms) // 2] for name, all_ms in times.items()}
    return {
        "model": "Qwen2-VL-7B tower, random weights",
        "image": f"{PHOTOGRAPH} (scikit-learn)",
        "patches": patches,
        "dtype": str(dtype).removeprefix("torch."),
        "blocks": shape.num_blocks,
        "num_heads": shape.num_heads,
        "rank": RANK,
        "backend": compact.backend,
        "heads_per_block": [spec.num_heads for spec in specs],
        "dense_ms": best["dense"],
        "compact_ms": best["compact"],
        "speedup": best["dense"] / best["compact"],
        "dense_ms_all": times["dense"],
        "compact_ms_all": times["compact"],
        **({"csrc_ms": best["csrc"], "csrc_ms_all": times["csrc"]} if kernels else {}),
        "dense_parameters": dense_cost.parameters,
        "compact_parameters": cost.parameters,
        "dense_flops": dense_cost.flops,
        "compact_flops": cost.flops,
        "compaction_seconds": seconds,
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
