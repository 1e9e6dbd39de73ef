"""Whole towers on the C++ kernels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import AutoModel
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig

from infoprune_rt.errors import InfopruneError
from infoprune_rt.runtime.encoder import CompactEncoder
from infoprune_rt.towers import adapter_by_name

BLOCKS = [
    {"num_heads": 4, "ffn": "dense", "size": None},
    {"num_heads": 0, "ffn": "lowrank", "size": 7},
    {"num_heads": 3, "ffn": "merged", "size": None},
    {"num_heads": 1, "ffn": "neurons", "size": 33},
]
GRIDS = torch.tensor([[1, 4, 6], [2, 2, 2], [1, 8, 10]])


def compact_tower(dtype: torch.dtype = torch.float32) -> CompactEncoder:
    torch.manual_seed(0)
    dense = Qwen2VLVisionConfig(depth=len(BLOCKS), embed_dim=64, hidden_size=48, num_heads=4, mlp_ratio=2)
    tower = AutoModel.from_config(adapter_by_name("qwen2_vl").compact_config(dense, BLOCKS))
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.1 if parameter.ndim > 1 else 0.3)
    return tower.to(dtype).eval()


def pixels(tower: CompactEncoder) -> Tensor:
    return torch.randn(int(GRIDS.prod(1).sum()), 1176).to(tower.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_tower_answers_as_the_plain_backend(dtype: torch.dtype) -> None:
    """No further from the float64 tower than twice the plain backend in the same dtype."""
    tower = compact_tower(dtype)
    x = pixels(tower)
    plain = tower(x, GRIDS).pooler_output
    tower.backend = "csrc"
    mine = tower(x, GRIDS).pooler_output
    exact = tower.double()(x.double(), GRIDS).pooler_output  # float64 is served by the plain operators
    rounding = torch.finfo(dtype).eps * exact.abs().max()
    assert (mine - exact).abs().max() <= 2 * (plain - exact).abs().max() + rounding
    assert not torch.equal(mine, plain)


@torch.no_grad()
def test_hidden_states_end_where_the_whole_pass_does() -> None:
    tower = compact_tower()
    tower.backend = "csrc"
    x = pixels(tower)
    whole, step_by_step = tower(x, GRIDS), tower(x, GRIDS, output_hidden_states=True)
    assert torch.equal(whole.last_hidden_state, step_by_step.hidden_states[-1])
    assert len(step_by_step.hidden_states) == len(BLOCKS) + 1


@torch.no_grad()
def test_changed_weights_are_packed_again() -> None:
    tower = compact_tower()
    x = pixels(tower)
    tower.backend = "csrc"
    before = tower(x, GRIDS).pooler_output
    tower.blocks[0].qkv.weight.mul_(0.5)
    after = tower(x, GRIDS).pooler_output
    assert not torch.allclose(before, after)
    tower.backend = "plain"
    torch.testing.assert_close(after, tower(x, GRIDS).pooler_output, rtol=1e-3, atol=1e-4)


def test_training_is_left_to_the_plain_operators() -> None:
    tower = compact_tower()
    tower.backend = "csrc"
    tower(pixels(tower), GRIDS).pooler_output.sum().backward()
    assert tower.blocks[0].qkv.weight.grad is not None


@torch.no_grad()
def test_the_stream_that_came_in_is_left_alone() -> None:
    tower = compact_tower()
    tower.backend = "csrc"
    x = pixels(tower)
    first = tower(x, GRIDS).pooler_output
    assert torch.equal(first, tower(x, GRIDS).pooler_output)


def test_backends_are_chosen_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    tower = compact_tower()
    assert tower.backend == "plain"
    with pytest.raises(InfopruneError, match="unknown backend 'abacus'; known are plain, csrc"):
        tower.backend = "abacus"
    monkeypatch.setenv("INFOPRUNE_BACKEND", "csrc")
    assert compact_tower().backend == "csrc"
    monkeypatch.setenv("INFOPRUNE_BACKEND", "abacus")
    with pytest.raises(InfopruneError, match="INFOPRUNE_BACKEND: unknown backend"):
        compact_tower()
