"""What the CPU engine is meant to reach, and what the rows say it reached; ratios of medians of one run."""

from __future__ import annotations

from collections.abc import Sequence

from infoprune_rt.benchmarking.cpu_tower import attention
from infoprune_rt.benchmarking.cpu_tower.cases import FULL_DEPTH, MIXED
from infoprune_rt.benchmarking.cpu_tower.contenders import (
    COMPILED,
    DENSE,
    ONE_BY_ONE,
    OPENVINO,
    ORT,
    OUR_DENSE,
    OUR_INT8,
    OURS,
    PLAIN,
)
from infoprune_rt.benchmarking.cpu_tower.measuring import Row
from infoprune_rt.benchmarking.targets import Target

PEERS = (COMPILED, OPENVINO, ORT)


class _Rows:
    """The rows that ran on the most threads, by name, patches and blocks."""

    def __init__(self, rows: Sequence[Row]) -> None:
        most = max((row["threads"] for row in rows), default=0)
        self._rows = {(r["name"], r["patches"], r["blocks"]): r for r in rows if r["threads"] == most}

    def value(self, key: str, name: str, patches: int, blocks: int = 4) -> float | None:
        found: float | None = self._rows.get((name, patches, blocks), {}).get(key)
        return found

    def ratio(self, key: str, names: Sequence[str], below: str, patches: int, blocks: int = 4) -> float | None:
        """The least of the named rows over another."""
        above = [v for name in names if (v := self.value(key, name, patches, blocks)) is not None]
        under = self.value(key, below, patches, blocks)
        return min(above) / under if above and under else None


def goals(rows: Sequence[Row]) -> list[Target]:
    """The goals that these rows can answer."""
    found = _Rows(rows)
    faster, share = "p50_ms", "share_of_gemm_rate"
    mixed = sum(height * width for height, width in MIXED)
    wanted = [
        *(
            _goal(f"times as fast as the best peer, {n} patches", found.ratio(faster, PEERS, OURS, n), 1.5, aim=1.7)
            for n in (1024, 4096)
        ),
        _goal("times as fast as transformers' dense, 1024 patches", found.ratio(faster, [DENSE], OURS, 1024), 10, 12),
        _goal("share of the GEMM rate, 1024 patches", found.value(share, OURS, 1024), 0.65, 0.75),
        _goal("share of the GEMM rate, 4096 patches", found.value(share, OURS, 4096), 0.6, 0.75),
        _goal(
            "attention: times as fast as scaled_dot_product_attention, 4096 patches",
            found.ratio(faster, [attention.SDPA], attention.OURS, 4096, blocks=0),
            1.6,
            2,
        ),
        _goal(
            "16 images in one pack, time over that of single passes",
            found.ratio(faster, [OURS], ONE_BY_ONE, mixed),
            at_most=1.0,
            aim=0.9,
        ),
        _goal(
            f"nothing pruned: times as fast as transformers, {FULL_DEPTH} blocks, 1024 patches",
            found.ratio(faster, [DENSE], OUR_DENSE, 1024, FULL_DEPTH),
            1.6,
            1.9,
        ),
        _goal(
            "peak memory above the weights over plain PyTorch's, 4096 patches",
            found.ratio("peak_bytes", [OURS], PLAIN, 4096),
            at_most=0.5,
        ),
        _goal("int8: times as fast as bfloat16, 1024 patches", found.ratio(faster, [OURS], OUR_INT8, 1024), 1.2, 1.4),
    ]
    return [goal for goal in wanted if goal is not None]


def _goal(
    name: str,
    reached: float | None,
    at_least: float | None = None,
    aim: float | None = None,
    at_most: float | None = None,
) -> Target | None:
    return None if reached is None else Target(name, reached, at_least, at_most, aim)
