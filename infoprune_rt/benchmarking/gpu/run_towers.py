"""Measures the whole tower: ours and transformers' on every pack first, then torch.compile for as long as time is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infoprune_rt.benchmarking.cpu_tower.cases import Case
from infoprune_rt.benchmarking.gpu.budget import Budget, Pace, ended_after
from infoprune_rt.benchmarking.gpu.device import chip_of
from infoprune_rt.benchmarking.gpu.goals import tower_goals
from infoprune_rt.benchmarking.gpu.measuring import Contender, Findings, Row, free_memory, largest_error, rows_of
from infoprune_rt.benchmarking.gpu.results import ResultFile
from infoprune_rt.benchmarking.gpu.timing import Timed
from infoprune_rt.benchmarking.gpu.towers import (
    COMPILED,
    DENSE,
    EAGER,
    GRAPHS,
    OURS,
    Pack,
    Towers,
    floor_us,
    tower_work,
)
from infoprune_rt.runtime.gpu_memory import graph_bytes, growth

FIRST_COMPILATION = 40.0  # seconds that torch.compile is expected to need before it was tried
FURTHER_PACK = 5.0  # seconds of measuring, once there are towers
WARM_PASSES = 3  # a compiled tower records its graph in the second one


class TowerBenchmark:
    """One run; what all its packs share."""

    def __init__(self, path: Path, device: torch.device, seconds: float, rounds: int, blocks: int) -> None:
        self._device, self._seconds, self._rounds = device, seconds, rounds
        self._budget, self._found = Budget(seconds), Findings()
        self._file = ResultFile(path, device)
        self._towers = Towers(device, blocks)

    def run(self, cases: Sequence[Case], names: Sequence[str]) -> dict[str, Any]:
        """Measure the named contenders on all packs; returns what is in the file."""
        for case in cases:
            for name in names:
                self._found.leave_out(_label(case, name), f"{self._seconds:.0f} s were over before it")
        result = self._write()
        quick = [name for name in names if name != COMPILED]
        pace = Pace(self._budget, 0)
        for case in cases:
            if pace.allows():
                with pace.timed():
                    self._measure(case, quick)
                result = self._write()
            if case is cases[0]:  # which made the towers, too: the others take less
                pace = Pace(self._budget, FURTHER_PACK)
        pace = Pace(self._budget, FIRST_COMPILATION)
        for case in cases if COMPILED in names else []:
            if pace.allows():
                with pace.timed():
                    self._measure(case, names)
                result = self._write()
        return result

    def _write(self) -> dict[str, Any]:
        dense: Any = vars(self._towers).get("dense")
        attention = None if dense is None else dense.config._attn_implementation
        goals = tower_goals(self._found.rows)
        return self._file.write(self._found, goals, graphs=self._graphs(), transformers_attention=attention)

    def _measure(self, case: Case, names: Sequence[str]) -> None:
        """Rows of this case; earlier ones of it are replaced, so that all of a case come out of the same turns."""
        packed = Pack.on(self._device, case)
        exact: dict[bool, dict[int, Tensor]] = {}
        contenders: dict[str, Contender] = {}
        for name in names:
            with self._found.recorded(_case(case), name, name in OURS):
                self._found.take_in(_label(case, name))
                contenders[name] = self._contender(name, packed, exact)
        with torch.inference_mode():
            rows = rows_of(_case(case), contenders, self._device, self._rounds)
        which = case.patches, len(case.grids)
        self._found.rows = [row for row in self._found.rows if (row["patches"], row["images"]) != which]
        self._found.rows += [self._with_floor(row, case) for row in rows]
        del contenders
        torch.compiler.reset()
        free_memory(self._device)

    def _contender(self, name: str, packed: Pack, exact: dict[bool, dict[int, Tensor]]) -> Contender:
        """Built outside of inference mode, as a tower's weights are, and run within. exact: what is known already."""
        of_dense = name == DENSE
        if of_dense not in exact:
            with torch.no_grad():
                exact[of_dense] = self._towers.exact_answers(of_dense, packed)
        before = self._held()
        with ended_after(self._budget.left, name):
            runs = self._towers.runs(name, packed)
            with torch.inference_mode():
                for _ in range(WARM_PASSES):
                    error = largest_error(runs, exact[of_dense])
                extra = growth(runs[0], self._device) if self._device.type == "cuda" else None
        graphs = self._towers.captured.graphs if name == GRAPHS else None
        held = self._held() - before if graphs is None else graphs.bytes
        more = {"held_bytes": held, "extra_bytes": None if extra is None else held + extra}
        return Contender(Timed(runs), error, name in OURS, more)

    def _held(self) -> int:
        """Bytes of all CUDA graphs."""
        return sum(graph_bytes().values()) if self._device.type == "cuda" else 0

    def _with_floor(self, row: Row, case: Case) -> Row:
        flops = sum(work.flops for work in tower_work(case)) if row["name"] != DENSE else None
        taken = row["p50_us"]
        row["tflops"] = None if flops is None or taken is None else flops / taken / 1e6
        chip = chip_of(torch.cuda.get_device_name(self._device)) if self._device.type == "cuda" else None
        row["floor_us"] = None if chip is None or row["name"] == DENSE else floor_us(case, chip)
        row["share_of_floor"] = None if row["floor_us"] is None or taken is None else row["floor_us"] / taken
        return row

    def _graphs(self) -> dict[str, Any] | None:
        """What was captured, for the record."""
        captured: Any = vars(self._towers).get("captured")
        graphs = None if captured is None else captured.graphs
        if graphs is None:
            return None
        return {
            "buckets": [
                {"tokens": b.tokens, "work_items": b.work_items, "replay_ms": b.replay_ms} for b in graphs.buckets
            ],
            "bytes": graphs.bytes,
            "launch_ms": graphs.launch_ms,
            "left_out": [list(item) for item in graphs.left_out],
        }


def bench_towers(
    path: Path,
    device: torch.device,
    seconds: float,
    cases: Sequence[Case],
    names: Sequence[str] = (GRAPHS, EAGER, DENSE, COMPILED),
    rounds: int = 20,
) -> dict[str, Any]:
    """Measure, write ``path`` (JSON), after every pack anew, and return what is in the file."""
    return TowerBenchmark(path, device, seconds, rounds, cases[0].blocks).run(cases, names)


def _case(case: Case) -> dict[str, Any]:
    return {"operator": "tower", "patches": case.patches, "images": len(case.grids), "blocks": case.blocks}


def _label(case: Case, name: str) -> str:
    return f"{name}, {case.patches} patches, images {len(case.grids)}"
