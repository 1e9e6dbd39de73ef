"""Capturing graphs: what is refused, and what a tower without a GPU does; replays are tested in tests/gpu."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import torch
from test_cpu_engine import GRIDS, compact_tower, pixels

from infoprune_rt.errors import InfopruneError
from infoprune_rt.ops import triton_backend
from infoprune_rt.runtime.graphs import capture
from infoprune_rt.runtime.seen_weights import SeenWeights

needs_triton = pytest.mark.skipif(triton_backend.missing() is not None, reason="triton is not installed")


def test_only_the_triton_kernels_are_captured() -> None:
    tower = compact_tower(torch.bfloat16)
    for tower.backend in ("plain", "csrc"):
        with pytest.raises(InfopruneError, match=f'backend is {tower.backend!r}; set tower.backend = "triton" first'):
            tower.capture_graphs()
    assert tower.graphs is None


@needs_triton
def test_a_tower_on_the_cpu_is_told_to_move() -> None:
    tower = compact_tower(torch.bfloat16)
    tower.backend = "triton"
    with pytest.raises(InfopruneError, match="captured on a GPU, but the tower is on cpu; move it to one first"):
        tower.capture_graphs()
    assert tower.graphs is None
    with torch.no_grad():
        assert tower(pixels(tower), GRIDS).pooler_output.isfinite().all()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"dtype": torch.float32}, "in float16 or bfloat16, but the tower is torch.float32"),
        ({"token_budgets": [64, 0]}, "positive numbers of patches, but 0 is among them"),
        ({"token_budgets": [64.0]}, "positive numbers of patches, but 64.0 is among them"),
        ({"token_budgets": []}, "but there are none"),
    ],
)
def test_what_cannot_be_captured_is_said_before_a_device_is_touched(options: dict[str, Any], told: str) -> None:
    blocks = compact_tower(options.pop("dtype", torch.bfloat16)).blocks
    somewhere = copy.copy(next(blocks.parameters()))
    pretended = type("Parameter", (), {"device": torch.device("cuda:0"), "dtype": somewhere.dtype})()
    stack: Any = type("Stack", (), {"parameters": lambda self: iter([pretended])})()
    arguments = {"rotary": True, "token_budgets": None, "max_bytes": 1} | options
    with pytest.raises(InfopruneError, match=re.escape(told)):
        capture(stack, **arguments)


@torch.no_grad()
def test_weights_that_were_written_to_still_lie_where_they_were() -> None:
    blocks = compact_tower().blocks
    seen = SeenWeights(blocks)
    blocks[0].qkv.weight.mul_(2)
    assert seen.lie_in(blocks)
    assert not seen.are_those_of(blocks)
    blocks[0].qkv.weight = torch.nn.Parameter(blocks[0].qkv.weight.clone())
    assert not seen.lie_in(blocks)
