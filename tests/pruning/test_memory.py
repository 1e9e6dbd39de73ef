"""What fits need is known before they begin, and what cannot be had is refused with a remedy."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from random_towers import make_plan, random_batch, random_tower
from torch import Tensor

from infoprune_rt import hardware
from infoprune_rt.errors import InfopruneError
from infoprune_rt.plan import BlockPlan, FFNPlan, Plan
from infoprune_rt.pruning import memory
from infoprune_rt.pruning.apply import apply_plan
from infoprune_rt.pruning.calibration import BlockMoments
from infoprune_rt.pruning.ffn_modes import wants_of
from infoprune_rt.pruning.memory import memory_needed, require_memory, require_spill_space, spill_needed, spills
from infoprune_rt.towers.base import TowerShape

CPU = torch.device("cpu")
SEVEN_B = TowerShape(32, 1280, 16, 80, 5120, "quick_gelu", 1e-6)
FORMS = [FFNPlan("rrr", size=8), FFNPlan("neurons", size=20), FFNPlan("taylor", size=8), FFNPlan("hybrid", size=8)]
HEADS = [(0,), (1, 2), (), (0, 1, 2)]


def seven_b(*, sequential: bool, fitted: int = 32) -> Plan:
    forms = [FFNPlan("neurons", size=1280)] * fitted + [FFNPlan()] * (32 - fitted)
    blocks = tuple(BlockPlan(tuple(range(16)), form) for form in forms)
    return Plan("qwen2_vl", SEVEN_B, blocks, sequential=sequential)


def held(moments: BlockMoments) -> int:
    sides = [side for twin in (moments.ffn, moments.heads) if twin is not None for side in (twin.fit, twin.held)]
    return sum(value.nbytes for side in sides for value in vars(side).values() if isinstance(value, Tensor))


def test_moments_take_what_is_said() -> None:
    plan = make_plan("qwen2_vl", HEADS, FORMS, refit=True)
    for block in plan.blocks:
        wants = wants_of(plan, block)
        assert BlockMoments.nbytes(wants, plan.shape) == held(BlockMoments.empty(wants, plan.shape, CPU))


def test_all_blocks_of_the_7b_at_once_take_16_gib() -> None:
    assert 16 < memory_needed(seven_b(sequential=False)) / 2**30 < 17
    assert memory_needed(seven_b(sequential=True)) / 2**30 < 2
    assert memory_needed(seven_b(sequential=False, fitted=0)) == 0


def test_too_little_memory_is_refused_with_need_and_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda _: 2**33)
    told = re.escape("fitting 32 blocks at once needs about 16.") + r"\d GiB on cpu, but only 8.0 GiB are available"
    with pytest.raises(InfopruneError, match=told + r"; fit one block after another \(--sequential\), or fewer blocks"):
        require_memory(seven_b(sequential=False), CPU)
    require_memory(seven_b(sequential=False, fitted=8), CPU)
    require_memory(seven_b(sequential=True), CPU)
    monkeypatch.setattr(memory, "available_bytes", lambda _: 2**30)
    with pytest.raises(InfopruneError, match=r"one after another needs about 1\..*free some memory"):
        require_memory(seven_b(sequential=True), CPU)
    monkeypatch.setattr(memory, "available_bytes", lambda _: None)
    require_memory(seven_b(sequential=False), CPU)


def test_apply_plan_judges_before_it_reads_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda _: 1000)
    tower, adapter = random_tower("clip")

    def batches() -> Iterator[dict[str, Tensor]]:
        raise AssertionError("calibration began")

    with pytest.raises(InfopruneError, match="are available"):
        apply_plan(tower, adapter, make_plan("clip", HEADS, FORMS), batches)
    apply_plan(tower, adapter, make_plan("clip", HEADS), batches)  # needs no data, hence no memory


def test_available_memory_is_read_where_the_kernel_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["MemTotal:       16 kB", "MemFree:         4 kB", "MemAvailable:    8 kB"]
    monkeypatch.setattr(hardware, "_proc", lambda name: {"meminfo": lines}.get(name, []))
    assert hardware.available_bytes(CPU) == 8192
    monkeypatch.setattr(hardware, "_proc", lambda _: [])
    assert hardware.available_bytes(CPU) is None


def test_a_spill_never_takes_more_than_is_said(tmp_path: Path) -> None:
    batches = [random_batch("qwen2_vl", grids) for grids in ([(1, 6, 10)], [(1, 2, 4), (1, 8, 4)], [(1, 12, 12)])]
    rows = [len(batch["hidden_states"]) for batch in batches]
    tower, adapter = random_tower("qwen2_vl")
    plan = make_plan("qwen2_vl", HEADS, FORMS, refit=True, sequential=True)
    peak = 0

    def look(*_: object) -> None:
        nonlocal peak
        peak = max(peak, sum(path.stat().st_size for path in tmp_path.rglob("*.safetensors")))

    apply_plan(tower, adapter, plan, lambda: batches, look, spill_dir=tmp_path)
    headers = 3 * len(batches) * 400
    assert 0.5 * spill_needed(plan, rows, 4) < peak < spill_needed(plan, rows, 4) + headers
    assert not list(tmp_path.iterdir())


def test_too_little_disk_is_refused_with_the_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
    plan = seven_b(sequential=True)
    require_spill_space(plan, [1564] * 20, 4, tmp_path)
    told = rf"need 6\.\d\d GB of disk, but {tmp_path} has 1\.00 GB free; choose another place \(--spill-dir\)"
    with pytest.raises(InfopruneError, match=told):
        require_spill_space(plan, [1564] * 256, 4, tmp_path)
    assert spills(plan)
    assert not spills(replace(plan, sequential=False))
    assert not spills(seven_b(sequential=True, fitted=0))
