"""What Table 1 is expected to show, as ratios of medians: to the first token, if not said otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from infoprune_rt.benchmarking.table1.methods import BOTH, DENSE, OURS, YOPO
from infoprune_rt.benchmarking.targets import Target

Row = dict[str, Any]


def speedup(row: Row, base: Row, stage: str = "first_token") -> float | None:
    """How many times as fast as ``base`` a row does a stage; None unless both gave the right answer."""
    if not (row["checked"] and base["checked"]):
        return None
    return float(base[f"{stage}_p50_ms"] / row[f"{stage}_p50_ms"])


def fastest(rows: Sequence[Row], method: str, execution: str | None = None) -> Row | None:
    """The fastest checked row of a method."""
    found = [r for r in rows if r["method"] == method and r["checked"] and execution in (None, r["execution"])]
    return min(found, key=lambda row: float(row["first_token_p50_ms"]), default=None)


def goals(rows: Sequence[Row]) -> list[Target]:
    """Those that these rows can answer, workload by workload."""
    found = []
    for name in dict.fromkeys(row["workload"] for row in rows):
        of_it = [row for row in rows if row["workload"] == name]
        ours, both = fastest(of_it, OURS, "compact"), fastest(of_it, BOTH, "compact")
        dense, released = fastest(of_it, DENSE), fastest(of_it, YOPO, "as released")
        skipping = fastest(of_it, YOPO, "compact")
        sdpa = next((row for row in of_it if row["method"] == DENSE and row["engine"] == "sdpa"), None)
        pairs = {
            "InfoPrune, times as fast as dense at its best": (ours, dense),
            "InfoPrune, times as fast as YOPO as released": (ours, released),
            "InfoPrune, times as fast as YOPO compact": (ours, skipping),
            "InfoPrune + YOPO, times as fast as InfoPrune": (both, ours),
            "InfoPrune + YOPO, times as fast as YOPO compact": (both, skipping),
            # Their towers are the same: only the language model can tell them apart.
            "prefill, dense (SDPA), times as fast as YOPO as released": (sdpa, released),
        }
        for told, (row, base) in pairs.items():
            stage = "prefill" if told.startswith("prefill") else "first_token"
            ratio = None if row is None or base is None else speedup(row, base, stage)
            if ratio is not None:
                found.append(Target(f"{name}: {told}", ratio, at_least=1.0))
    return found
