"""Goals are ratios of the right rows."""

from __future__ import annotations

from typing import Any

import pytest

from infoprune_rt.benchmarking.cpu_tower import attention, contenders
from infoprune_rt.benchmarking.cpu_tower.goals import goals
from infoprune_rt.benchmarking.targets import Target


def row(name: str, patches: int, p50_ms: float, blocks: int = 4, threads: int = 2, **more: Any) -> dict[str, Any]:
    times = {"p50_ms": p50_ms, "share_of_gemm_rate": 0.5, "peak_bytes": None}
    return {"name": name, "patches": patches, "blocks": blocks, "threads": threads, **times, **more}


ROWS = [
    row(contenders.DENSE, 1024, 110),
    row(contenders.PLAIN, 1024, 9),  # the reference, not a peer
    row(contenders.COMPILED, 1024, 20),
    row(contenders.OPENVINO, 1024, 16),
    row(contenders.ORT, 1024, 70),
    row(contenders.ORT_INT8, 1024, 8),  # another precision
    row(contenders.OURS, 1024, 10, share_of_gemm_rate=0.7),
    row(contenders.OUR_INT8, 1024, 8),
    row(contenders.OPENVINO, 1024, 1, threads=1),
    row(contenders.OURS, 1024, 1, threads=1),
    row(contenders.PLAIN, 4096, 100, peak_bytes=200),
    row(contenders.COMPILED, 4096, 90),
    row(contenders.OURS, 4096, 60, peak_bytes=120),
    row(contenders.OURS, 7216, 95),
    row(contenders.ONE_BY_ONE, 7216, 100),
    row(contenders.DENSE, 1024, 900, blocks=32),
    row(contenders.OUR_DENSE, 1024, 500, blocks=32),
    row(contenders.OURS, 1024, 80, blocks=32),
    row(attention.SDPA, 4096, 30, blocks=0),
    row(attention.OURS, 4096, 15, blocks=0),
]
REACHED = {
    "times as fast as the best peer, 1024 patches": (1.6, True),
    "times as fast as the best peer, 4096 patches": (1.5, True),
    "times as fast as transformers' dense, 1024 patches": (11.0, True),
    "share of the GEMM rate, 1024 patches": (0.7, True),
    "share of the GEMM rate, 4096 patches": (0.5, False),
    "attention: times as fast as scaled_dot_product_attention, 4096 patches": (2.0, True),
    "16 images in one pack, time over that of single passes": (0.95, True),
    "nothing pruned: times as fast as transformers, 32 blocks, 1024 patches": (1.8, True),
    "peak memory above the weights over plain PyTorch's, 4096 patches": (0.6, False),
    "int8: times as fast as bfloat16, 1024 patches": (1.25, True),
}


def test_every_goal_is_computed_from_its_rows() -> None:
    found = {goal.name: (pytest.approx(goal.reached), goal.met) for goal in goals(ROWS)}
    assert found == REACHED


@pytest.mark.parametrize("name", [contenders.OURS, attention.OURS])
def test_goals_without_their_rows_are_left_out(name: str) -> None:
    left = {goal.name for goal in goals([row for row in ROWS if row["name"] != name])}
    gone = {goal for goal in REACHED if goal.startswith("attention") == (name == attention.OURS)}
    assert left == REACHED.keys() - gone | {g for g in REACHED if g.startswith("nothing pruned")}
    assert goals([]) == []


def test_an_aim_is_no_bound() -> None:
    assert Target("x", 1.5, at_least=1.5, aim=1.7).met
    assert not Target("x", 1.4, at_least=1.5, aim=1.0).met
