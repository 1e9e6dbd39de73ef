"""The least time that each operator could take on a chip: predictions from published peak rates, no measurements.

``python -m infoprune_kernels.roofline DOCUMENT`` writes them into a document, as a table.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from infoprune_kernels.documents import fill, markdown_table

ELEMENT_BYTES = 2  # bfloat16 and float16
TABLE_BYTES = 4  # cos and sin are float32


@dataclass(frozen=True)
class Chip:
    """A chip's peak rates: 16-bit products without sparsity per second, memory per second, and what gives the rest."""

    name: str
    flops: float
    memory_bytes: float
    multiprocessors: int
    clock_hz: float

    @property
    def exponentials(self) -> float:
        """2^x per second: 16 per multiprocessor and cycle, by the throughput table of NVIDIA's CUDA guide."""
        return 16 * self.multiprocessors * self.clock_hz


# NVIDIA's data sheets of the SXM boards with 80, 80 and 141 GB; the clock is the one at which they state products.
# The A800 is an A100 with slower links between boards.
CHIPS = (
    Chip("A800", 312e12, 2.039e12, 108, 1.41e9),
    Chip("H100", 989.4e12, 3.35e12, 132, 1.83e9),
    Chip("H200", 989.4e12, 4.8e12, 132, 1.83e9),
)


@dataclass(frozen=True)
class Work:
    """What an operator must do whatever its kernel: FLOPs (a multiply-add is two), bytes moved once, exponentials."""

    flops: int
    bytes: int
    exponentials: int = 0

    def times(self, chip: Chip) -> dict[str, float]:
        """Seconds that each of the chip's resources is busy."""
        return {
            "products": self.flops / chip.flops,
            "memory": self.bytes / chip.memory_bytes,
            "exponentials": self.exponentials / chip.exponentials,
        }

    def floor(self, chip: Chip) -> float:
        """Seconds below which no kernel can be: all resources busy at once, and the slowest decides."""
        return max(self.times(chip).values())

    def bound(self, chip: Chip) -> str:
        """The resource that decides."""
        times = self.times(chip)
        return max(times, key=times.__getitem__)


def _product(tokens: int, inner: int, outer: int) -> int:
    return 2 * tokens * inner * outer


def norm_qkv_rope(tokens: int, width: int, heads: int, head_dim: int) -> Work:
    """With rotary positions."""
    columns = 3 * heads * head_dim
    elements = tokens * width + 2 * width + width * columns + columns + tokens * columns
    return Work(_product(tokens, width, columns), ELEMENT_BYTES * elements + 2 * TABLE_BYTES * tokens * head_dim)


def attention(lengths: Sequence[int], heads: int, head_dim: int) -> Work:
    """Of packed sequences."""
    pairs = heads * sum(length**2 for length in lengths)
    return Work(4 * pairs * head_dim, ELEMENT_BYTES * 4 * sum(lengths) * heads * head_dim, pairs)


def linear_residual(tokens: int, inner: int, width: int) -> Work:
    """The projection behind attention: inner is heads * head_dim."""
    return Work(
        _product(tokens, inner, width), ELEMENT_BYTES * (tokens * inner + inner * width + width + 2 * tokens * width)
    )


def ffn_lowrank(tokens: int, width: int, rank: int | None) -> Work:
    """Two factors of this rank, or the merged map where it is None."""
    inner, factors = (width, 1) if rank is None else (rank, 2)
    elements = 2 * tokens * width + factors * width * inner + 3 * width
    return Work(factors * _product(tokens, width, inner), ELEMENT_BYTES * elements)


def ffn_dense(tokens: int, width: int, hidden: int, *, gated: bool = False) -> Work:
    """Without the activation's exponentials, and without the hidden row's way through memory.

    hidden: values that the second layer is given; a gated FFN has twice as many rows in its first.
    """
    matrices = 3 if gated else 2
    elements = 2 * tokens * width + matrices * width * hidden + (matrices - 1) * hidden + 3 * width
    return Work(matrices * _product(tokens, width, hidden), ELEMENT_BYTES * elements)


def qwen2_vl_block(tokens: int) -> dict[str, Work]:
    """One block of Qwen2-VL's tower with half its heads and an FFN of rank 128, one image."""
    width, heads, head_dim = 1280, 8, 80
    return {
        f"norm_qkv_rope, {heads} heads of {head_dim}": norm_qkv_rope(tokens, width, heads, head_dim),
        f"attention, {heads} heads of {head_dim}": attention([tokens], heads, head_dim),
        f"linear_residual, {heads * head_dim} to {width}": linear_residual(tokens, heads * head_dim, width),
        "ffn_lowrank, rank 128": ffn_lowrank(tokens, width, 128),
    }


def predictions() -> list[dict[str, str | float]]:
    """Rows of the table: each operator at two sizes of one image, other FFNs, and a compact tower's 32 blocks."""
    rows = []
    for tokens in (1564, 4096):
        block = qwen2_vl_block(tokens)
        others = {
            "ffn_lowrank, rank 512": ffn_lowrank(tokens, 1280, 512),
            "ffn_lowrank, merged": ffn_lowrank(tokens, 1280, None),
            "ffn_dense, 1280 neurons": ffn_dense(tokens, 1280, 1280),
            "ffn_dense, 5120 neurons": ffn_dense(tokens, 1280, 5120),
        }
        rows += [_row(name, tokens, [work], 1) for name, work in (block | others).items()]
        rows.append(_row("32 blocks of the first four", tokens, list(block.values()), 32))
    return rows


def _row(name: str, tokens: int, works: list[Work], times: int) -> dict[str, str | float]:
    """Operators one after the other, each with its own floor."""
    row: dict[str, str | float] = {
        "operator": name,
        "patches": tokens,
        "GFLOP": round(times * sum(work.flops for work in works) / 1e9, 1),
        "MB": round(times * sum(work.bytes for work in works) / 1e6, 1),
    }
    for chip in CHIPS:
        floor = times * sum(work.floor(chip) for work in works)
        row[f"{chip.name}, µs"] = f"{1e6 * floor:.1f}" + (f" ({works[0].bound(chip)})" if len(works) == 1 else "")
    return row


if __name__ == "__main__":
    fill(Path(sys.argv[1]), "roofline", markdown_table(predictions()))
