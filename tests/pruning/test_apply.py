"""Plans carried out: the compact tower is the masked tower, fits go where they belong, input is checked."""

from __future__ import annotations

import copy
import errno
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from random_towers import (
    ARCHITECTURES,
    compact_tower,
    doubled,
    last_hidden,
    make_plan,
    random_batch,
    random_tower,
    with_zeta,
)
from torch import Tensor, nn

from infoprune_rt.errors import InfopruneError
from infoprune_rt.plan import FFNPlan, Plan
from infoprune_rt.pruning import sequential as sequential_fitting
from infoprune_rt.pruning.apply import apply_plan
from infoprune_rt.towers.base import TowerAdapter

ALL = [(0, 1, 2)] * 4
SOME = [(0, 2), (1,), (), (0, 1, 2)]


def no_data() -> Any:
    raise AssertionError("calibration images were read although no fit needs them")


@contextmanager
def masked(tower: nn.Module, adapter: TowerAdapter, plan: Plan) -> Iterator[None]:
    """The unmodified tower with every removed head at 0 and every kept one at its zeta."""
    handles = []
    for block, block_plan in zip(adapter.blocks(tower), plan.blocks, strict=True):
        gate = torch.zeros(plan.shape.num_heads)
        gate[list(block_plan.heads)] = torch.tensor(block_plan.zeta or (1.0,) * len(block_plan.heads))
        scale = gate.repeat_interleave(plan.shape.head_dim)
        hook = lambda _module, args, scale=scale: (args[0] * scale.to(args[0].dtype),)  # noqa: E731
        handles.append(block.out_proj.register_forward_pre_hook(hook))
    yield
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("zeta", [False, True])
@pytest.mark.parametrize("heads", [SOME, [(), (2,), (), (0,)], [()] * 4])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_compact_tower_is_the_masked_tower(architecture: str, heads: list[tuple[int, ...]], zeta: bool) -> None:
    tower, adapter = random_tower(architecture)
    plan = make_plan(architecture, heads)
    plan = with_zeta(plan) if zeta else plan
    batch = random_batch(architecture)
    compact = last_hidden(compact_tower(architecture, apply_plan(tower, adapter, plan, no_data)), batch)
    wide = copy.deepcopy(tower).double()
    with masked(wide, adapter, plan):
        exact = last_hidden(wide, doubled(batch))
    with masked(tower, adapter, plan):
        theirs = (last_hidden(tower, batch) - exact).abs().max()
    rounding = torch.finfo(torch.float32).eps * exact.abs().max()
    assert (compact - exact).abs().max() <= 2 * theirs + rounding
    assert (last_hidden(tower, batch) - exact).abs().max() > 100 * theirs  # the masks did something


@pytest.mark.parametrize("refit", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_plan_that_removes_nothing_changes_no_bit(architecture: str, refit: bool) -> None:
    tower, adapter = random_tower(architecture)
    applied = apply_plan(tower, adapter, make_plan(architecture, ALL, refit=refit, sequential=True), no_data)
    for i, block in enumerate(adapter.blocks(tower)):
        weight, bias = adapter.qkv(block)
        expected = {
            "norm1.weight": block.norm1.weight,
            "norm1.bias": block.norm1.bias,
            "qkv.weight": weight.flatten(0, 2),
            "qkv.bias": bias.flatten(),
            "out.weight": block.out_proj.weight,
            "out.bias": block.out_proj.bias,
            "norm2.weight": block.norm2.weight,
            "norm2.bias": block.norm2.bias,
            "ffn.fc1_weight": block.fc1.weight,
            "ffn.fc1_bias": block.fc1.bias,
            "ffn.fc2_weight": block.fc2.weight,
            "ffn.fc2_bias": block.fc2.bias,
        }
        for name, tensor in expected.items():
            assert torch.equal(applied.state[f"blocks.{i}.{name}"], tensor), name
    assert applied.specs == [{"num_heads": 3, "ffn": "dense", "size": None}] * 4
    assert applied.spectra == [None] * 4


def test_state_shares_no_memory_with_the_tower() -> None:
    tower, adapter = random_tower("qwen2_vl")
    state = apply_plan(tower, adapter, make_plan("qwen2_vl", ALL), no_data).state
    before = {name: tensor.clone() for name, tensor in state.items()}
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(1)
    assert all(torch.equal(state[name], tensor) for name, tensor in before.items())


FORMS = [
    FFNPlan("rrr", size=10),
    FFNPlan("neurons", size=33),
    FFNPlan("taylor", epsilon=0.3),
    FFNPlan("rrr", size=30),
]


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_mixed_plan_gives_a_working_smaller_tower(architecture: str, sequential: bool) -> None:
    tower, adapter = random_tower(architecture)
    plan = make_plan(architecture, SOME, FORMS, refit=True, sequential=sequential)
    steps: list[tuple[int, int]] = []
    batches = [random_batch(architecture) for _ in range(4)]
    reads = iter([batches])  # a second reading would fail
    applied = apply_plan(tower, adapter, plan, lambda: next(reads), lambda *step: steps.append(step))
    compact = compact_tower(architecture, applied)
    assert last_hidden(compact, batches[0]).isfinite().all()
    assert steps == [(i + 1, 4) for i in range(4)]
    assert [spec["num_heads"] for spec in applied.specs] == [2, 1, 0, 3]
    forms = [(spec["ffn"], spec["size"]) for spec in applied.specs]
    assert forms[:2] == [("lowrank", 10), ("neurons", 33)]
    assert forms[3] == ("merged", None)
    assert [block.ffn.fitted_size for block in applied.plan.blocks][:2] == [10, 33]
    assert applied.plan.blocks[3].ffn.size == 30
    assert all(block.ffn.held_out_error is not None for block in applied.plan.blocks)
    assert all(spectrum is not None for spectrum in applied.spectra)
    assert sum(p.numel() for p in compact.blocks.parameters()) < 0.75 * sum(
        p.numel() for block in adapter.blocks(tower) for p in block.module.parameters()
    )


ACTIVATED = [
    FFNPlan("rrr", size=10, between="silu"),
    FFNPlan("taylor", size=12, between="quick_gelu"),
    FFNPlan("taylor", epsilon=0.3, bias="taylor", between="gelu"),
    FFNPlan("rrr", size=10),
]


def ffn_in_and_out(tower: nn.Module, adapter: TowerAdapter, index: int, batch: dict[str, Tensor]) -> list[Tensor]:
    """What one block's FFN is given and gives in the unmodified tower, T x d each."""
    seen: list[Tensor] = []
    ffn = adapter.blocks(tower)[index].ffn
    handle = ffn.register_forward_hook(lambda _m, args, out: seen.extend((args[0].flatten(0, -2), out.flatten(0, -2))))
    last_hidden(tower, batch)
    handle.remove()
    return seen


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_activation_between_factors_has_the_constant_of_the_map_itself(architecture: str, sequential: bool) -> None:
    """On the rows fitted on, the block errs by nothing on average; its held-out error is measured, not predicted."""
    tower, adapter = random_tower(architecture)
    batches = [random_batch(architecture) for _ in range(4)]
    plan = make_plan(architecture, ALL, ACTIVATED, sequential=sequential)
    applied = apply_plan(tower, adapter, plan, lambda: batches)
    specs = [(spec["ffn"], spec["size"], spec.get("activation")) for spec in applied.specs]
    assert specs[:2] == [("neurons", 10, "silu"), ("neurons", 12, "quick_gelu")]
    assert specs[2][0::2] == ("neurons", "gelu")
    assert specs[3] == ("lowrank", 10, None)
    assert "activation" not in applied.specs[3]
    assert applied.plan.blocks[0].ffn.note == "silu between the factors"

    block = applied.state
    first = {name: block[f"blocks.0.ffn.{name}"] for name in ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")}
    assert not first["fc1_bias"].any()
    torch.testing.assert_close(first["fc1_weight"] @ first["fc1_weight"].T, torch.eye(10), atol=1e-5, rtol=0)
    errors = []
    for batch in batches:
        x, y = ffn_in_and_out(tower, adapter, 0, batch)
        hidden = nn.functional.silu(x @ first["fc1_weight"].T)
        errors.append((hidden @ first["fc2_weight"].T + first["fc2_bias"] - y).double())
        spread = (y - y.mean(0)).square().sum()
        if batch is batches[1]:  # held out
            held_out = applied.plan.blocks[0].ffn.held_out_error
            assert held_out == pytest.approx(float(errors[-1].square().sum() / spread), rel=1e-3)
    fitted = torch.cat([errors[i] for i in (0, 2, 3)])
    torch.testing.assert_close(fitted.mean(0), torch.zeros_like(fitted[0]), atol=1e-4, rtol=0)
    assert last_hidden(compact_tower(architecture, applied), batches[0]).isfinite().all()


def test_data_are_read_twice_only_for_activated_factors_fitted_apart() -> None:
    tower, adapter = random_tower("clip")
    for ffn, sequential, times in (
        (FFNPlan("rrr", size=10, between="silu"), False, 2),
        (FFNPlan("rrr", size=10, between="silu"), True, 1),
        (FFNPlan("rrr", size=10), False, 1),
        (FFNPlan("rrr", epsilon=1e-9, between="silu"), False, 1),  # all stay dense: nothing to correct
    ):
        reads = iter([[random_batch("clip") for _ in range(2)] for _ in range(times)])
        apply_plan(tower, adapter, make_plan("clip", ALL, ffn, sequential=sequential), lambda reads=reads: next(reads))
        assert next(reads, None) is None


HYBRIDS = [
    FFNPlan("hybrid", size=21),
    FFNPlan("hybrid", epsilon=0.3),
    FFNPlan("rrr", size=9),
    FFNPlan("hybrid", size=40),
]


@pytest.mark.parametrize("forms", [FORMS, ACTIVATED, HYBRIDS])
def test_the_resolved_plan_gives_the_same_tower_again(tmp_path: Path, forms: list[FFNPlan]) -> None:
    tower, adapter = random_tower("qwen2_vl")
    batches = [random_batch("qwen2_vl") for _ in range(3)]
    plan = make_plan("qwen2_vl", SOME, forms, refit=True, sequential=True)
    applied = apply_plan(tower, adapter, plan, lambda: batches)
    applied.plan.write(tmp_path / "plan.json")
    again = apply_plan(tower, adapter, Plan.read(tmp_path / "plan.json"), lambda: batches)
    assert again.specs == applied.specs
    assert again.plan == applied.plan
    assert all(torch.equal(again.state[name], tensor) for name, tensor in applied.state.items())


def test_the_first_block_does_not_depend_on_the_order_of_fitting() -> None:
    tower, adapter = random_tower("clip")
    batches = [random_batch("clip") for _ in range(3)]
    plan = make_plan("clip", SOME, FFNPlan("rrr", size=9), refit=False)
    apart = apply_plan(tower, adapter, plan, lambda: batches)
    in_order = apply_plan(tower, adapter, replace(plan, sequential=True), lambda: batches)
    full = make_plan("clip", ALL, FFNPlan("rrr", size=9))
    apart_full = apply_plan(tower, adapter, full, lambda: batches)
    in_order_full = apply_plan(tower, adapter, replace(full, sequential=True), lambda: batches)
    first, second = (_ffn_map(a.state, 0) for a in (apart_full, in_order_full))
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-4)
    assert (_ffn_map(apart.state, 3) - _ffn_map(in_order.state, 3)).abs().max() > 1e-2


def _ffn_map(state: dict[str, Tensor], block: int) -> Tensor:
    """Factors are only defined up to a rotation; their product is not."""
    return state[f"blocks.{block}.ffn.up"] @ state[f"blocks.{block}.ffn.down"]


def drift(architecture: str, tower: nn.Module, applied: Any, batches: list[dict[str, Tensor]]) -> float:
    """Relative error of the compact tower's last hidden states against the dense tower's."""
    compact = compact_tower(architecture, applied)
    dense = torch.cat([last_hidden(tower, batch) for batch in batches])
    ours = torch.cat([last_hidden(compact, batch) for batch in batches])
    return float((ours - dense).square().sum() / (dense - dense.mean(0)).square().sum())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_refit_and_sequence_bring_the_tower_closer(architecture: str) -> None:
    tower, adapter = random_tower(architecture)
    batches = [random_batch(architecture) for _ in range(24)]
    plan = make_plan(architecture, [(0, 2), (1,), (), (2,)], FFNPlan("rrr", size=12))
    fresh = [random_batch(architecture) for _ in range(4)]

    def error(refit: bool, sequential: bool) -> float:
        wanted = replace(plan, refit=refit, sequential=sequential)
        return drift(architecture, tower, apply_plan(tower, adapter, wanted, lambda: batches), fresh)

    assert error(True, False) < error(False, False)
    assert error(True, True) < error(True, False)


@pytest.mark.parametrize("sequential", [False, True])
def test_without_heads_the_refitted_bias_is_the_mean_attention(sequential: bool) -> None:
    tower, adapter = random_tower("clip")
    plan = make_plan("clip", [(), (0, 1, 2), (0, 1, 2), (0, 1, 2)], refit=True, sequential=sequential)
    batches = [random_batch("clip") for _ in range(2)]
    seen: list[Tensor] = []
    hook = adapter.blocks(tower)[0].out_proj.register_forward_hook(lambda _m, _a, out: seen.append(out.flatten(0, 1)))
    state = apply_plan(tower, adapter, plan, lambda: batches).state
    hook.remove()
    assert {name for name in state if name.startswith("blocks.0.") and ".ffn." not in name} == {
        "blocks.0.out.bias",
        "blocks.0.norm2.weight",
        "blocks.0.norm2.bias",
    }
    torch.testing.assert_close(state["blocks.0.out.bias"], seen[0].mean(0), rtol=1e-4, atol=1e-5)


def test_half_precision_towers_stay_so() -> None:
    tower, adapter = random_tower("qwen2_vl")
    tower.to(torch.bfloat16)
    batches = [random_batch("qwen2_vl") for _ in range(2)]
    plan = make_plan("qwen2_vl", SOME, FORMS, refit=True, sequential=True)
    state = apply_plan(tower, adapter, plan, lambda: batches).state
    assert {tensor.dtype for tensor in state.values()} == {torch.bfloat16}
    assert all(tensor.isfinite().all() for tensor in state.values())


def test_plans_of_other_towers_are_refused() -> None:
    tower, adapter = random_tower("clip")
    with pytest.raises(InfopruneError, match="'qwen2_vl' tower, but this one is 'clip'"):
        apply_plan(tower, adapter, make_plan("qwen2_vl", ALL), no_data)
    plan = make_plan("clip", ALL)
    wider = replace(plan, shape=replace(plan.shape, ffn_width=128))
    with pytest.raises(InfopruneError, match="ffn_width 128"):
        apply_plan(tower, adapter, wider, no_data)


def test_nan_weights_are_refused_by_name() -> None:
    tower, adapter = random_tower("clip")
    with torch.no_grad():
        adapter.blocks(tower)[2].fc1.bias[3] = float("nan")
    with pytest.raises(InfopruneError, match=r"layers\.2\.mlp\.fc1\.bias"):
        apply_plan(tower, adapter, make_plan("clip", ALL), no_data)


def test_a_full_disk_is_told_and_nothing_stays(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    written = 0
    really_save = sequential_fitting.save_file

    def full_after_five(tensors: dict[str, Tensor], path: Path) -> None:
        nonlocal written
        written += 1
        if written > 5:
            raise OSError(errno.ENOSPC, "No space left on device")
        really_save(tensors, path)

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(sequential_fitting, "save_file", full_after_five)
    tower, adapter = random_tower("clip")
    plan = make_plan("clip", SOME, refit=True, sequential=True)
    with pytest.raises(InfopruneError, match="No space left on device"):
        apply_plan(tower, adapter, plan, lambda: [random_batch("clip")] * 2)
    assert written == 6
    assert not list(tmp_path.iterdir())
