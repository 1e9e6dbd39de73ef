"""Tables of tiles: which one a device gets, which tile a kernel gets, and what the shipped ones promise."""

from __future__ import annotations

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
    told = r"product does not serve rank 300, tokens 1 on some: it serves up to .*'rank': 64.* or \{'rank': 256\}"
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
    assert table_for(torch.device("cpu")) is tables()[-1]


@pytest.mark.parametrize("table", tables(), ids=lambda table: table.name)
def test_shipped_tables_serve_every_operator_and_nothing_unmeasured_by_choice(table: ConfigTable) -> None:
    """Where no rule is left for the low-rank kernel, two products serve, which have no limit."""
    assert table.rules.keys() == {"norm_qkv_rope", "attention", "linear_residual", "ffn_lowrank", "ffn_dense"}
    for kernel in ("norm_qkv_rope", "linear_residual", "ffn_dense"):
        assert table.choose(kernel)
    assert table.choose("attention", head_dim=128)
    assert table.choose("ffn_lowrank", rank=256)
    assert not table.measured
