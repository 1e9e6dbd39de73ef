"""Compressing a checkpoint: where the work is done, and that the files do not show it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from compact_models import full_model, tower_inputs
from safetensors.torch import load_file
from torch import nn

from infoprune_rt import compression
from infoprune_rt.compression import compress_checkpoint, make_plan
from infoprune_rt.errors import InfopruneError
from infoprune_rt.plan import FFNPlan, Plan
from infoprune_rt.towers import adapter_by_name
from infoprune_rt.towers.base import TowerShape


def dense_checkpoint(folder: Path, architecture: str) -> tuple[Path, Plan]:
    """A dense model on disk in bfloat16, and a plan that needs data."""
    torch.manual_seed(0)
    model = full_model(architecture).to(torch.bfloat16)
    model.save_pretrained(folder)
    adapter = adapter_by_name(architecture)
    shape = adapter.shape(adapter.vision_config(model.config))
    masks = torch.tensor([[True, False, True]] * shape.num_blocks)
    return folder, make_plan(architecture, shape, masks=masks, ffn=FFNPlan(mode="neurons", size=10))


def test_kept_heads_keep_their_zeta_only_if_it_is_given() -> None:
    shape = TowerShape(num_blocks=3, width=8, num_heads=2, head_dim=4, ffn_width=9, activation="gelu", norm_eps=1e-6)
    masks = torch.tensor([[True, True], [False, True], [False, False]])
    zeta = torch.tensor([[0.5, 0.25], [0.75, 1.0], [0.0, 0.0]], dtype=torch.float64)
    assert [block.zeta for block in make_plan("clip", shape, masks=masks).blocks] == [None] * 3
    folded = make_plan("clip", shape, masks=masks, zeta=zeta)
    assert [block.zeta for block in folded.blocks] == [(0.5, 0.25), (1.0,), ()]
    unused = make_plan("clip", shape, masks=masks, zeta=zeta, used_blocks=1)
    assert [block.zeta for block in unused.blocks] == [(0.5, 0.25), None, None]
    with pytest.raises(InfopruneError, match=r"zeta of shape \(3,\) does not fit a tower of 3 blocks with 2 heads"):
        make_plan("clip", shape, masks=masks, zeta=zeta[:, 0])


class SeenEnoughError(Exception):
    pass


def test_the_tower_is_fitted_on_the_device_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dense, plan = dense_checkpoint(tmp_path / "dense", "clip")

    def seen(tower: nn.Module, *_: Any, **__: Any) -> None:
        assert {parameter.device.type for parameter in tower.parameters()} == {"meta"}
        raise SeenEnoughError

    monkeypatch.setattr(compression, "named_device", {"cuda:1": torch.device("meta")}.__getitem__)
    monkeypatch.setattr(compression, "apply_plan", seen)
    for name in ("cuda:1", torch.device("cuda:1")):
        with pytest.raises(SeenEnoughError):
            compress_checkpoint(dense, tmp_path / "out", plan, lambda: [], device=name)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("architecture", ["qwen2_vl", "clip"])
def test_a_gpu_gives_the_same_files(tmp_path: Path, architecture: str) -> None:
    dense, plan = dense_checkpoint(tmp_path / "dense", architecture)
    batches = [tower_inputs(architecture) for _ in range(4)]
    for device in ("cpu", "cuda"):
        compress_checkpoint(dense, tmp_path / device, plan, lambda: batches, device=device)
    assert (tmp_path / "cpu" / "config.json").read_text() == (tmp_path / "cuda" / "config.json").read_text()
    for path in (tmp_path / "cpu").glob("*.safetensors"):
        ours, theirs = load_file(path), load_file(tmp_path / "cuda" / path.name)
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            torch.testing.assert_close(theirs[name], tensor, rtol=0.05, atol=0.05)
