"""Made-up demo reports of any size."""

from __future__ import annotations

import random
from typing import Any

ENVIRONMENT = {
    "python": "3.11.9",
    "system": "Linux x86_64",
    "cpu": "Some CPU @ 2.10GHz",
    "cores": 2,
    "threads": 2,
    "instruction_sets": ["avx2", "avx512f", "avx512_vnni"],
    "fast_bfloat16": False,
    "cuda_devices": [],
    "versions": {"infoprune-rt": "0.1.0", "torch": "2.13.0+cpu", "triton": None, "transformers": "5.23.0"},
    "backends": {"plain": "available (PyTorch operators, any device)"},
}
VARIANTS = {  # name: label, accuracy lost in points, share of parameters and time left, heads left
    "dense": ("dense", 0.0, 1.0, 1.0),
    "heads": ("heads by ζ + refit", 0.3, 0.84, 0.5),
    "ffn": ("FFN neurons", 0.4, 0.58, 1.0),
    "both": ("heads + neurons (ours)", 0.9, 0.42, 0.5),
    "paper_heads": ("ζ < z, no refit", 2.6, 0.84, 0.5),
    "paper": ("the paper's recipe", 60.5, 0.31, 0.5),
    "random": ("random heads + refit + neurons", 4.2, 0.42, 0.5),
}


def sample_report(blocks: int = 6, heads: int = 6, width: int = 192, seed: int = 0) -> dict[str, Any]:
    """A report with every field that the demo writes; figures drawn from ``seed``."""
    draw = random.Random(seed)
    zeta = [[draw.uniform(0.02, 0.98) for _ in range(heads)] for _ in range(blocks)]
    variants = [_variant(name, draw, blocks, heads, width) for name in VARIANTS]
    return {
        "date": "2026-11-20T18:30:00+00:00",
        "command": "infoprune demo",
        "environment": ENVIRONMENT,
        "model": {
            "blocks": blocks,
            "width": width,
            "num_heads": heads,
            "head_dim": 32,
            "ffn_width": 4 * width,
            "patches": 64,
        },
        "settings": {
            "calibration_scenes": 300,
            "test_scenes": 250,
            "questions": 2000,
            "head_training": {"steps": 200, "lr": 0.05, "gate": "sigmoid", "epoch_steps": None},
            "keep": 0.5,
            "neurons": width,
            "z": 0.5,
            "epsilon": 0.001,
        },
        "dense": _measured(variants[0]),
        "compact": _measured(variants[3]),
        "variants": variants,
        "heads_per_block": variants[3]["heads_per_block"],
        "ranks_per_block": [None if draw.random() < 0.2 else width for _ in range(blocks)],
        "zeta": zeta,
        "taylor": _taylor(draw, blocks, width),
        "masked_vs_compact_max_error": 1.2e-6,
        "fullsize": _fullsize(draw),
    }


def _variant(name: str, draw: random.Random, blocks: int, heads: int, width: int) -> dict[str, Any]:
    label, lost, left, heads_left = VARIANTS[name]
    accuracy = {"vqa": 95.1 - lost * draw.uniform(0.8, 1.2), "text": 99.0 - lost, "relations": 92.1 - lost}
    p50 = 40.1 * left + draw.uniform(0, 2)
    dense_ffn = name in ("dense", "heads", "paper_heads")
    ffn = {"kind": "dense", "size": 4 * width} if dense_ffn else {"kind": "neurons", "size": width}
    return {
        "name": name,
        "label": label,
        "accuracy": accuracy | {"overall": 95.4 - lost},
        "parameters": round(2_660_000 * left),
        "flops": 3.4e8 * left,
        "latency_ms": {"p50": p50, "p90": p50 * 1.1},
        "heads_per_block": [
            heads if heads_left == 1 else min(heads, max(0, round(heads * heads_left + draw.uniform(-1, 1))))
            for _ in range(blocks)
        ],
        "ffn_per_block": [ffn if name != "paper" else {"kind": "lowrank", "size": 80} for _ in range(blocks)],
    }


def _measured(variant: dict[str, Any]) -> dict[str, Any]:
    return {key: variant[key] for key in ("accuracy", "parameters", "flops", "latency_ms")}


def _taylor(draw: random.Random, blocks: int, width: int) -> dict[str, Any]:
    epsilon, curves, ranks = 0.001, [], []
    for _ in range(blocks):
        decay = draw.uniform(2, 14) / width
        energies = [(1 - k / width) * 2.718 ** (-decay * k) for k in range(width + 1)]
        curves.append(energies)
        rank = next(k for k, energy in enumerate(energies) if energy <= epsilon)
        ranks.append(None if rank > 0.9 * width else rank)
    return {"epsilon": epsilon, "ranks": ranks, "discarded_energy": curves}


def _fullsize(draw: random.Random) -> dict[str, Any]:
    return {
        "model": "Qwen2-VL-7B tower, random weights",
        "image": "china.jpg (scikit-learn)",
        "patches": 1380,
        "dtype": "float32",
        "blocks": 32,
        "rank": 128,
        "heads_per_block": [8] * 32,
        "num_heads": 16,
        "dense_ms": 9800.0,
        "compact_ms": 2310.0,
        "speedup": 9800.0 / 2310.0,
        "dense_ms_all": [9800.0 * draw.uniform(0.97, 1.05) for _ in range(5)],
        "compact_ms_all": [2310.0 * draw.uniform(0.97, 1.05) for _ in range(5)],
        "dense_parameters": 675_000_000,
        "compact_parameters": 158_000_000,
        "dense_flops": 2.1e12,
        "compact_flops": 4.6e11,
        "compaction_seconds": 44.0,
        "peak_memory_gib": 6.1,
    }
