"""Tables of tiles: which one a device gets, which tile a kernel gets, and what the shipped ones promise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from infoprune_kernels.configs import ConfigTable, Rule, Tile, pick, table_for, tables

SMALL, LARGE = Tile(64, 64, 4, 2), Tile(128, 64, 8, 3, block_k=32)
TABLE = ConfigTable(
    "some",
    ("Some GPU",),
    80,
    166912,
    False,
    {"product": (Rule({"rank": 64, "tokens": 100}, SMALL), Rule({"rank": 256}, LARGE), Rule({"tokens": 9}, None))},
)


def test_the_first_rule_whose_limits_are_kept_decides() -> None:
    assert TABLE.find("product", rank=64, tokens=100) is SMALL
    assert TABLE.find("product", rank=64, tokens=101) is LARGE
    assert TABLE.find("product", rank=256, tokens=1) is LARGE
    assert TABLE.find("product", rank=257, tokens=1) is None
    assert TABLE.find("product", rank=257, tokens=10) is None
    assert TABLE.find("unknown", rank=1) is None


def test_sizes_that_no_rule_serves_are_named() -> None:
    told = r"product does not serve rank 300, tokens 1 on some: it serves up to \{'rank': 256\}$"
    with pytest.raises(ValueError, match=told):
        TABLE.choose("product", rank=300, tokens=1)


def test_a_tile_says_what_it_is() -> None:
    assert str(SMALL) == "64x64, 4 warps, 2 stages"
    assert str(LARGE) == "128x64x32, 8 warps, 3 stages"


@pytest.mark.parametrize(
    ("device", "shared_bytes", "name"),
    [
        ("NVIDIA A800-SXM4-80GB", 166912, "a100"),
        ("NVIDIA A100-PCIE-40GB", 166912, "a100"),
        ("NVIDIA H200", 232448, "h100"),
        ("NVIDIA H100 80GB HBM3", 232448, "h100"),
        ("NVIDIA L40S", 101376, "l40s"),
        # Of no table: what fits in its shared memory.
        ("NVIDIA GeForce RTX 4090", 101376, "l40s"),
        ("NVIDIA B200", 232448, "h100"),
        # A slice of a named device that has less shared memory than the device.
        ("NVIDIA A100", 101376, "l40s"),
    ],
)
def test_a_device_gets_its_table_or_one_that_fits(device: str, shared_bytes: int, name: str) -> None:
    assert pick(tables(), device, shared_bytes).name == name


def test_a_device_with_too_little_shared_memory_is_refused() -> None:
    with pytest.raises(ValueError, match="Tesla T4 has 65536 bytes of shared memory per block; no configuration"):
        pick(tables(), "Tesla T4", 65536)


def test_the_interpreter_gets_the_largest_table() -> None:
    assert table_for(torch.device("cpu")) is [table for table in tables() if not table.measured][-1]


@pytest.mark.parametrize("table", tables(), ids=lambda table: table.name)
def test_shipped_tables_serve_every_operator_and_nothing_unmeasured_by_choice(table: ConfigTable) -> None:
    """Where no rule is left for the low-rank kernel, two products serve, which have no limit."""
    kernels = {"norm_qkv_rope", "attention", "linear_residual", "ffn_lowrank", "ffn_dense"}
    assert table.rules.keys() - {"attention_hopper"} == kernels
    for tokens in (1, 10**6):
        for kernel in ("norm_qkv_rope", "linear_residual"):
            assert table.choose(kernel, tokens=tokens, inputs=10**5, outputs=10**5)
        assert table.choose("ffn_dense", tokens=tokens, width=10**5, neurons=10**5)
        assert table.choose("attention", tokens=tokens, heads=100, head_dim=128)
    assert table.measured == bool(table.provenance)
    if not table.measured:
        assert "attention_hopper" not in table.rules
        assert table.find("ffn_lowrank", tokens=10**6, width=1280, rank=256)


MULTIPROCESSORS = {"a100": 108, "h100": 132, "l40s": 142}


@pytest.mark.parametrize("table", [t for t in tables() if not t.measured], ids=lambda table: table.name)
@pytest.mark.parametrize("tokens", [1, 256, 512, 1024, 1564, 4096, 12100])
def test_tiles_of_arithmetic_keep_the_chip_busy(table: ConfigTable, tokens: int) -> None:
    """Half of its multiprocessors have a program, or no tile of 64 rows would give them one."""
    half = MULTIPROCESSORS[table.name] // 2
    for outputs in (128, 256, 640, 1280, 1920, 3840, 5120):
        tile = table.choose("linear_residual", tokens=tokens, inputs=640, outputs=outputs)
        programs = -(-tokens // tile.block_m) * -(-outputs // tile.block_n)
        assert programs >= min(half, -(-tokens // 64) * -(-outputs // 64))
    for heads in (4, 8, 16):
        tile = table.choose("attention", tokens=tokens, heads=heads, head_dim=80)
        assert heads * -(-tokens // tile.block_m) >= min(half, heads * -(-tokens // 64))
    for rank in (64, 256, 512):
        whole = table.find("ffn_lowrank", tokens=tokens, width=1280, rank=rank)
        assert whole is None or -(-tokens // whole.block_m) >= half


def test_all_tiles_that_sizes_may_get() -> None:
    assert TABLE.tiles("product") == [SMALL, LARGE]
    assert TABLE.tiles("product", rank=100) == [LARGE]
    assert TABLE.tiles("product", rank=300) == []
    assert TABLE.tiles("product", tokens=101) == [LARGE]
    assert TABLE.tiles("unknown") == []


def test_a_measured_table_is_for_its_device_alone() -> None:
    known = [*tables(), replace(TABLE, measured=True, devices=("NVIDIA H200",))]
    assert pick(known, "NVIDIA H200", 232448).name == "some"
    assert pick(known, "NVIDIA H200 NVL", 232448).name == "h100"
    assert pick(known, "NVIDIA H200", 101376).name == "l40s"
    assert pick(known, "NVIDIA B200", 232448).name == "h100"
