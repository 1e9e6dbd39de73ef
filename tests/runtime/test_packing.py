"""Bounds, positions and rotary tables equal transformers' own; unsound grids are refused."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLVisionRotaryEmbedding
from transformers.vision_utils import get_vision_cu_seqlens, get_vision_position_ids

from infoprune_rt.errors import InfopruneError
from infoprune_rt.runtime.packing import axial_rope, check_grids, pack_grids

CPU = torch.device("cpu")


@given(
    merge=st.sampled_from([1, 2, 3]),
    head_dim=st.sampled_from([4, 20, 32, 80]),
    theta=st.sampled_from([1e4, 77.0]),
    grids=st.lists(st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4),
)
def test_equals_transformers(merge: int, head_dim: int, theta: float, grids: list[tuple[int, int, int]]) -> None:
    grid_thw = torch.tensor([(t, h * merge, w * merge) for t, h, w in grids])
    config = Qwen2VLVisionConfig(
        embed_dim=2 * head_dim, num_heads=2, rope_parameters={"rope_type": "axial", "rope_theta": theta}
    )
    rows = int(grid_thw.prod(-1).sum())
    cos, sin = Qwen2VLVisionRotaryEmbedding(config)(torch.empty(rows, 1), get_vision_position_ids(grid_thw, merge))
    stream = pack_grids(grid_thw, rows, merge_size=merge, head_dim=head_dim, theta=theta, device=CPU)
    assert list(stream.cu_seqlens) == get_vision_cu_seqlens(grid_thw).tolist()
    assert stream.cos is not None
    assert stream.sin is not None
    assert torch.equal(stream.cos, cos)
    assert torch.equal(stream.sin, sin)


@pytest.mark.parametrize(
    ("grid", "told"),
    [
        (torch.tensor([1, 4, 4]), "one row (t, h, w) per image, but it is (3,)"),
        (torch.empty(0, 3, dtype=torch.int64), "one row (t, h, w) per image, but it is (0, 3)"),
        (torch.tensor([[1.0, 4, 4]]), "whole numbers, not torch.float32"),
        (torch.tensor([[1, 4, 4], [1, 3, 4]]), "row 1 is (1, 3, 4)"),
        (torch.tensor([[0, 4, 4]]), "row 0 is (0, 4, 4): all three must be positive"),
        (torch.tensor([[1, -2, 4]]), "row 0 is (1, -2, 4)"),
    ],
)
def test_unsound_grids_are_told(grid: torch.Tensor, told: str) -> None:
    with pytest.raises(InfopruneError, match=re.escape(told)):
        check_grids(grid, 2)


def test_too_few_or_too_many_pixels_are_told() -> None:
    with pytest.raises(InfopruneError, match="describes 16 patches, but 15 rows"):
        pack_grids(torch.tensor([[1, 4, 4]]), 15, merge_size=2, head_dim=8, device=CPU)


def test_head_sizes_that_two_axes_cannot_share_are_told() -> None:
    with pytest.raises(InfopruneError, match="multiple of 4, not 6"):
        axial_rope(torch.zeros(1, 2), 6)
