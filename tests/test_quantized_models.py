"""Models with int8 blocks: written, loaded, converted, copied; what does not fit together is refused."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from compact_models import ARCHITECTURES, full_model, model_inputs, tower_inputs, vision_config
from torch import Tensor
from transformers import AutoModel

from infoprune_rt import checkpoint, load_vlm
from infoprune_rt.compression import compress_checkpoint, quantize_tower
from infoprune_rt.errors import InfopruneError
from infoprune_rt.inspection import inspect_model
from infoprune_rt.plan import BlockPlan, FFNPlan, Plan
from infoprune_rt.runtime.encoder import CompactEncoder
from infoprune_rt.towers import adapter_by_name

FORMS = [
    FFNPlan("rrr", 7),
    FFNPlan("taylor", 20),
    FFNPlan("neurons", 19),
    FFNPlan(),
    FFNPlan("rrr", 9, between="silu"),
    FFNPlan("hybrid", 12),
]
HEADS: list[tuple[int, ...]] = [(0,), (), (0, 1, 2), (0, 2), (1,), (0, 1)]


def int8_plan(architecture: str) -> Plan:
    """Every kind of block, all quantised but the fourth."""
    shape = adapter_by_name(architecture).shape(vision_config(architecture))
    blocks = tuple(BlockPlan(heads, form) for heads, form in zip(HEADS, FORMS, strict=True))
    plan = Plan(architecture, shape, blocks).quantized("int8")
    return replace(plan, blocks=(*plan.blocks[:3], replace(plan.blocks[3], quantize=None), *plan.blocks[4:]))


def compressed(folder: Path, architecture: str, dtype: torch.dtype, **options: Any) -> Path:
    full_model(architecture).to(dtype).save_pretrained(folder / "dense")
    batches = [tower_inputs(architecture) for _ in range(6)]
    compress_checkpoint(folder / "dense", folder / "compact", int8_plan(architecture), lambda: batches, **options)
    return folder / "compact"


def features(tower: CompactEncoder, architecture: str) -> Tensor:
    inputs = tower_inputs(architecture)
    with torch.no_grad():
        out: Tensor = tower(**{n: x.to(tower.dtype) if x.is_floating_point() else x for n, x in inputs.items()})[0]
    return out


@pytest.fixture(params=ARCHITECTURES)
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    """A tower alone in bfloat16, whose blocks are all int8 but the fourth."""
    return request.param, compressed(tmp_path, request.param, torch.bfloat16, tower_only=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_full_model_is_saved_loaded_and_generates(tmp_path: Path, architecture: str, dtype: torch.dtype) -> None:
    vlm = load_vlm(compressed(tmp_path, architecture, dtype))
    tower = adapter_by_name(architecture).tower_of(vlm)
    kinds = [{p.dtype for p in block.parameters()} for block in tower.blocks]
    assert kinds == [{torch.int8, dtype}] * 3 + [{dtype}] + [{torch.int8, dtype}] * 2
    assert tower.dtype == dtype
    vlm.save_pretrained(tmp_path / "again")
    again = load_vlm(tmp_path / "again")
    state = again.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in vlm.state_dict().items())
    inputs = {n: x.to(dtype) if x.is_floating_point() else x for n, x in model_inputs(architecture).items()}
    tokens = [m.generate(**inputs, max_new_tokens=4, do_sample=False) for m in (vlm, again)]
    assert torch.equal(*tokens)
    assert Plan.read(tmp_path / "again" / "plan.json") == tower.plan


def test_conversions_and_copies_keep_codes_and_scales(stored: tuple[str, Path]) -> None:
    architecture, folder = stored
    tower = AutoModel.from_pretrained(folder)
    exact = {name: tensor.clone() for name, tensor in tower.state_dict().items()}
    int8 = [name for name in exact if f"{name}_scale" in exact]
    assert len(int8) == 4 + 1 + 4 + 0 + 4 + 4  # the second block has no heads and a merged FFN
    made = {
        "deepcopy": copy.deepcopy(tower),
        "loaded in float32": CompactEncoder.from_pretrained(folder, dtype=torch.float32),
        "there and back": CompactEncoder.from_pretrained(folder).float().to(torch.bfloat16),
        "half": CompactEncoder.from_pretrained(folder).half(),
    }
    for how, other in made.items():
        state = other.state_dict()
        for name in int8:
            assert torch.equal(state[name], exact[name]), how
            assert torch.equal(state[f"{name}_scale"].float(), exact[f"{name}_scale"].float()), how
        assert features(other, architecture).isfinite().all(), how


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_compact_tower_is_quantised_as_compress_does(tmp_path: Path, architecture: str) -> None:
    torch.manual_seed(0)
    some = CompactEncoder.from_pretrained(compressed(tmp_path, architecture, torch.float32, tower_only=True))
    made = quantize_tower(some)
    assert made.plan == some.plan.quantized("int8")
    before, after = some.state_dict(), made.state_dict()
    added = {name for name in after if name not in before}
    assert {name.removesuffix("_scale") for name in added} == {
        name for name, t in before.items() if name.startswith("blocks.3.") and t.ndim == 2
    }
    for name in before.keys() - {name.removesuffix("_scale") for name in added}:
        assert torch.equal(after[name], before[name])
        assert after[name].data_ptr() != before[name].data_ptr()
    made.save_pretrained(tmp_path / "made")
    again = CompactEncoder.from_pretrained(tmp_path / "made").state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in after.items())
    assert features(made, architecture).isfinite().all()


def test_a_tower_without_a_checkpoint_gets_random_int8_weights(stored: tuple[str, Path]) -> None:
    architecture, folder = stored
    config = CompactEncoder.from_pretrained(folder).config
    tower = AutoModel.from_config(config).float()
    wide = tower.blocks[0].qkv.weight * tower.blocks[0].qkv.weight_scale[:, None]
    std = getattr(config, "initializer_range", 0.02)
    assert wide.std().item() == pytest.approx(std, rel=0.2)
    assert features(tower, architecture).isfinite().all()


def test_bytes_are_those_of_the_files(stored: tuple[str, Path]) -> None:
    _, folder = stored
    found, state = inspect_model(folder, 16), checkpoint.load_tower(folder).state
    assert found.dtype == "bfloat16"
    for row in found.rows:
        assert row.bytes == sum(t.nbytes for name, t in state.items() if name.startswith(f"blocks.{row.block}."))
    assert found.bytes == sum(row.bytes or 0 for row in found.rows)
    assert [row.quantize for row in found.rows] == ["int8", "int8", "int8", None, "int8", "int8"]
    assert found.dense_bytes == 2 * found.dense_parameters


def test_tensors_of_the_wrong_kind_are_refused(stored: tuple[str, Path], tmp_path: Path) -> None:
    _, folder = stored
    parts = checkpoint.load_tower(folder)
    name = "blocks.0.ffn.down"
    whole = parts.state[name] * parts.state[f"{name}_scale"][:, None]
    codes = parts.state["blocks.3.qkv.weight"].to(torch.int8)
    unscaled = {key: tensor for key, tensor in parts.state.items() if key != f"{name}_scale"}
    unquantised = replace(parts.plan, blocks=(replace(parts.plan.blocks[0], quantize=None), *parts.plan.blocks[1:]))
    for state, plan, told in [
        (parts.state | {name: whole}, parts.plan, r"'blocks\.0\.ffn\.down' is torch\.bfloat16, not torch\.int8"),
        (parts.state | {"blocks.3.qkv.weight": codes}, parts.plan, "is torch.int8, not a floating-point tensor"),
        (unscaled, parts.plan, r"lack 'blocks\.0\.ffn\.down_scale'"),
        (parts.state, unquantised, "block 0: the plan quantises to None, but the tower's config has 'int8'"),
    ]:
        with pytest.raises(InfopruneError, match=told):
            checkpoint.save_tower(tmp_path / "bad", parts.config, state, plan)
    assert not (tmp_path / "bad").exists()


def test_plans_and_checkpoints_from_before_quantisation_are_read(stored: tuple[str, Path], tmp_path: Path) -> None:
    _, folder = stored
    values = json.loads((folder / "plan.json").read_text())
    for block in values["blocks"]:
        del block["quantize"]
    (tmp_path / "plan.json").write_text(json.dumps(values))
    assert [block.quantize for block in Plan.read(tmp_path / "plan.json").blocks] == [None] * 6
