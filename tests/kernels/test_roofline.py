"""Predictions: their arithmetic by hand, their FLOPs by the package's own count, and the document that shows them."""

from __future__ import annotations

from pathlib import Path

import pytest
from infoprune_kernels import roofline
from infoprune_kernels.documents import fill, markdown_table
from infoprune_kernels.roofline import CHIPS, Chip, Work

from infoprune_rt.runtime.blocks import BlockSpec
from infoprune_rt.runtime.costs import block_cost
from infoprune_rt.towers.base import TowerShape

DOCUMENT = Path(__file__).parents[2] / "docs" / "gpu-kernels.md"
SLOW = Chip("slow", flops=100.0, memory_bytes=10.0, multiprocessors=2, clock_hz=0.25)


@pytest.mark.parametrize(
    ("work", "seconds", "bound"),
    [
        (Work(1000, 10), 10, "products"),
        (Work(1000, 200), 20, "memory"),
        (Work(1000, 200, 320), 40, "exponentials"),
    ],
)
def test_the_slowest_resource_decides(work: Work, seconds: float, bound: str) -> None:
    assert work.floor(SLOW) == seconds
    assert work.bound(SLOW) == bound


def test_every_tensor_is_counted_once() -> None:
    """By hand: 3 tokens, width 4, 2 heads of 6, two bytes each; the rotary tables have four."""
    assert roofline.norm_qkv_rope(3, 4, 2, 6) == Work(2 * 3 * 4 * 36, 2 * (12 + 8 + 144 + 36 + 108) + 4 * 36)
    assert roofline.attention([1, 2], 2, 6) == Work(4 * 5 * 12, 2 * 4 * 36, 10)
    assert roofline.linear_residual(3, 12, 4) == Work(2 * 3 * 48, 2 * (36 + 48 + 4 + 12 + 12))
    assert roofline.ffn_lowrank(3, 4, 2) == Work(2 * 3 * 16, 2 * (24 + 16 + 12))
    assert roofline.ffn_lowrank(3, 4, None) == Work(2 * 3 * 16, 2 * (24 + 16 + 12))
    assert roofline.ffn_dense(3, 4, 5) == Work(2 * 3 * 40, 2 * (24 + 40 + 5 + 12))
    assert roofline.ffn_dense(3, 4, 5, gated=True) == Work(2 * 3 * 60, 2 * (24 + 60 + 10 + 12))


def test_a_block_has_the_flops_that_the_package_counts() -> None:
    shape = TowerShape(32, 1280, 16, 80, 5120, "quick_gelu", 1e-6)
    spec = BlockSpec(num_heads=8, ffn="lowrank", size=128)
    works = roofline.qwen2_vl_block(1564).values()
    assert sum(work.flops for work in works) == block_cost(spec, shape, [1564]).flops


def test_memory_bounds_low_ranks_and_products_high_ones() -> None:
    """Two factors of rank k do about k FLOPs per byte; the A800 has 153 per byte of its memory, the H100 295."""
    for chip, below, above in ((CHIPS[0], 96, 256), (CHIPS[1], 192, 512)):
        assert roofline.ffn_lowrank(10**6, 1280, below).bound(chip) == "memory"
        assert roofline.ffn_lowrank(10**6, 1280, above).bound(chip) == "products"


@pytest.mark.parametrize(
    ("chip", "dim", "bound"),
    [("A800", 64, "products"), ("A800", 128, "products"), ("H100", 32, "exponentials"), ("H100", 128, "products")],
)
def test_exponentials_bound_small_heads_on_hopper(chip: str, dim: int, bound: str) -> None:
    (found,) = (known for known in CHIPS if known.name == chip)
    assert roofline.attention([4096], 8, dim).bound(found) == bound


def test_the_document_shows_these_predictions(tmp_path: Path) -> None:
    copy = tmp_path / "copy.md"
    copy.write_text(DOCUMENT.read_text())
    fill(copy, "roofline", markdown_table(roofline.predictions()))
    assert copy.read_text() == DOCUMENT.read_text(), "run make aot"


def test_a_document_without_marks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plain.md"
    path.write_text("nothing\n")
    with pytest.raises(ValueError, match=r"plain\.md has no marks for the table 'roofline'"):
        fill(path, "roofline", "| a |\n")
    assert path.read_text() == "nothing\n"
