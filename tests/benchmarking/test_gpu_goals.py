"""Goals of the GPU engine are ratios of the right rows."""

from __future__ import annotations

from typing import Any

import pytest

from infoprune_rt.benchmarking.gpu import goals, operators, towers
from infoprune_rt.benchmarking.gpu.attention_peers import SDPA_BACKENDS

FLASH, CUDNN, EFFICIENT = SDPA_BACKENDS


def attention(name: str, p50_us: float | None, tokens: int = 1564, heads: int = 8, images: int = 1) -> dict[str, Any]:
    sizes = {"patches": tokens, "images": images, "heads": heads}
    return {"operator": "attention", **sizes, "name": name, "p50_us": p50_us}


def ffn(name: str, p50_us: float | None, rank: int) -> dict[str, Any]:
    return {"operator": "ffn_lowrank", "patches": 1564, "rank": rank, "name": name, "p50_us": p50_us}


def tower(name: str, p50_us: float, extra: int, tokens: int = 1564, images: int = 1) -> dict[str, Any]:
    floors = {"floor_us": None if name == towers.DENSE else 600.0}
    where = {"operator": "tower", "patches": tokens, "images": images}
    return {**where, "name": name, "p50_us": p50_us, "extra_bytes": extra, **floors}


OPERATORS = [
    attention(operators.OURS, 10),
    attention(FLASH, 20),
    attention(CUDNN, 13),
    attention(EFFICIENT, None),  # wrong: never the best
    attention("varlen_attn", 5),  # a peer of another kind
    attention(operators.OURS, 10, heads=5),
    attention(FLASH, 12, heads=5),
    attention(operators.OURS, 1, images=16),
    attention(FLASH, 1, images=16),
    ffn(operators.OURS, 4, 64),
    ffn(operators.TWO_PRODUCTS, 8, 64),
    ffn(operators.OURS, 5, 256),
    ffn(operators.TWO_PRODUCTS, 6, 256),
    ffn(operators.OURS, 10, 512),
    ffn(operators.TWO_PRODUCTS, 5, 512),
]
TOWERS = [
    tower(towers.GRAPHS, 900, 50),
    tower(towers.EAGER, 2000, 30),
    tower(towers.COMPILED, 1260, 10),
    tower(towers.DENSE, 3240, 100),
    tower(towers.GRAPHS, 1, 1, images=16),
    tower(towers.GRAPHS, 1000, 50, tokens=4096),
    tower(towers.DENSE, 5000, 100, tokens=4096),
]


def found(targets: list[Any]) -> dict[str, tuple[Any, bool]]:
    return {target.name: (pytest.approx(target.reached), target.met) for target in targets}


def test_operators() -> None:
    assert found(goals.operator_goals(OPERATORS)) == {
        "attention, heads of 80, 1564 patches: times as fast as the best SDPA backend": (1.2, True),
        "FFN of rank 256 or less, 1564 patches: times as fast as two products in a graph": (1.2, False),
    }


def test_a_size_without_an_answer_leaves_its_goal_out() -> None:
    rows = [row for row in OPERATORS if (row["name"], row.get("heads")) != (FLASH, 5)]
    rows = [{**row, "p50_us": None} if row["name"] == operators.OURS and row.get("rank") == 64 else row for row in rows]
    assert goals.operator_goals(rows) == []
    assert goals.operator_goals([]) == []


def test_towers() -> None:
    image = "one image of 640 x 480 (1564 patches) through 32 blocks, ends included: time over its floor"
    assert found(goals.tower_goals(TOWERS)) == {
        "tower, 1564 patches: times as fast as torch.compile(max-autotune)": (1.4, True),
        "tower, 1564 patches: times as fast as transformers' dense": (3.6, False),
        "tower, 1564 patches: extra memory over transformers', with what all graphs hold": (0.5, False),
        "tower, 1564 patches: extra memory over transformers', without graphs": (0.3, True),
        image: (1.5, True),
        "tower, 4096 patches: times as fast as transformers' dense": (5.0, True),
        "tower, 4096 patches: extra memory over transformers', with what all graphs hold": (0.5, False),
    }
    assert goals.tower_goals([]) == []
