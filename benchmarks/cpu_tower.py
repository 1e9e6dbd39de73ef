"""The compact 7B tower on the CPU: our C++ kernels against plain PyTorch, torch.compile and transformers' dense tower.

All compact rows share one set of weights (half the heads, FFNs of rank 128, random) and one input; every output is
checked against the float32 tower before anything is timed. Writes benchmarks/results/<machine>/cpu_tower.json.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers import AutoModel
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig

from infoprune_rt.benchmarking.environment import command, environment, machine_name
from infoprune_rt.benchmarking.timing import interleaved, percentiles
from infoprune_rt.demo.fullsize import dense_tower
from infoprune_rt.files import write_text
from infoprune_rt.runtime.blocks import block_specs
from infoprune_rt.runtime.costs import BlockCost, tower_costs
from infoprune_rt.runtime.encoder import CompactEncoder
from infoprune_rt.towers import adapter_by_name

HEADS, RANK = 8, 128
MIXED = ((16, 16), (24, 32), (10, 14), (32, 20)) * 4  # patch rows and columns of sixteen images
OURS = "compact, csrc"
DTYPE = torch.bfloat16
GEMM_SIZE = 2048


@dataclass(frozen=True)
class Case:
    """One input: its grids, and on how many threads."""

    grids: tuple[tuple[int, int], ...]
    threads: int
    blocks: int

    @property
    def patches(self) -> int:
        """Rows of the pack."""
        return sum(height * width for height, width in self.grids)

    def inputs(self) -> tuple[Tensor, Tensor]:
        """Random pixels of all patches and grid_thw."""
        torch.manual_seed(1)
        return torch.randn(self.patches, 1176), torch.tensor([(1, height, width) for height, width in self.grids])


def compact_tower(blocks: int) -> CompactEncoder:
    """Half the heads, FFNs of rank 128, random weights from a fixed seed."""
    torch.manual_seed(0)
    spec = {"num_heads": HEADS, "ffn": "lowrank", "size": RANK}
    config = adapter_by_name("qwen2_vl").compact_config(Qwen2VLVisionConfig(depth=blocks), [spec] * blocks)
    tower: CompactEncoder = AutoModel.from_config(config).eval()
    return tower


def gemm() -> Callable[[], Tensor]:
    """torch's own product of two GEMM_SIZE x GEMM_SIZE matrices in the tower's dtype: what this machine can do."""
    a, b = (torch.randn(GEMM_SIZE, GEMM_SIZE).to(DTYPE) for _ in range(2))
    return lambda: a @ b


def contenders(tower: CompactEncoder, blocks: int) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
    """Every way to run the tower, by name."""
    ours, compiled = copy.deepcopy(tower), copy.deepcopy(tower)
    ours.backend = "csrc"
    compiled.blocks = torch.compile(compiled.blocks, fullgraph=True, dynamic=False)
    dense = dense_tower(DTYPE, blocks)
    ways = {
        "transformers, dense": dense,
        "compact, plain PyTorch": tower,
        "compact, torch.compile": compiled,
        OURS: ours,
    }
    return {name: lambda x, grid, model=model: model(x.to(DTYPE), grid).pooler_output for name, model in ways.items()}


def errors(outputs: dict[str, Tensor], exact: Tensor) -> dict[str, float | None]:
    """Largest difference from the float32 tower, relative to its largest value; the dense one is another tower."""
    most = exact.abs().max()
    return {
        name: None if "dense" in name else float((out.float() - exact).abs().max() / most)
        for name, out in outputs.items()
    }


def above_weights(run: Callable[[], object]) -> int | None:
    """Bytes by which resident memory peaks while ``run`` runs (Linux; None elsewhere)."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    reset.write_text("5")
    before = _status(status, "VmRSS")
    run()
    return max(_status(status, "VmHWM") - before, 0)


def _status(path: Path, field: str) -> int:
    line = next(line for line in path.read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def tower_flops(tower: CompactEncoder, case: Case) -> float:
    """FLOPs of one pass: the blocks, the patch embedding, and the merger, which works on groups of patches."""
    shape = adapter_by_name("qwen2_vl").shape(tower.config)
    lengths = [height * width for height, width in case.grids]
    blocks = sum(tower_costs(block_specs(tower.config.blocks, shape), shape, lengths), BlockCost()).flops
    merger = sum(p.numel() for p in tower.merger.parameters() if p.ndim == 2) / tower.spatial_merge_size**2
    return blocks + 2 * case.patches * (tower.patch_embed.weight.numel() + merger)


def measure(case: Case, repeats: int) -> list[dict[str, Any]]:
    """One row per contender on one input; the machine's GEMM rate is measured in the same rounds."""
    torch.set_num_threads(case.threads)
    torch.compiler.reset()
    tower = compact_tower(case.blocks)
    x, grid = case.inputs()
    exact = tower(x, grid).pooler_output
    ways = contenders(tower.to(DTYPE), case.blocks)
    outputs = {name: run(x, grid) for name, run in ways.items()}
    found = errors(outputs, exact)
    allowed = 2 * (found["compact, plain PyTorch"] or 0) + torch.finfo(DTYPE).eps
    runs: dict[str, Callable[[], object]] = {name: lambda run=run: run(x, grid) for name, run in ways.items()}
    times = interleaved({**runs, "gemm": gemm()}, repeats)
    flop_rate = 2 * GEMM_SIZE**3 / (percentiles(times["gemm"])["p50"] / 1000)
    flops = tower_flops(tower, case)
    rows = []
    for name, run in runs.items():
        taken, error = percentiles(times[name]), found[name]
        rows.append(
            {
                "name": name,
                "patches": case.patches,
                "images": len(case.grids),
                "blocks": case.blocks,
                "threads": case.threads,
                "dtype": str(DTYPE).removeprefix("torch."),
                "p50_ms": taken["p50"],
                "p90_ms": taken["p90"],
                "max_error": error,
                "checked": error is not None and error <= allowed,
                "peak_bytes": above_weights(run),
                "gemm_tflops": flop_rate / 1e12,
                "share_of_gemm_rate": None if error is None else flops / (taken["p50"] / 1000) / flop_rate,
            }
        )
    return rows


def cases(quick: bool, threads: int) -> list[Case]:
    """Single images of 256, 1024 and 4096 patches and a mixed pack, 4 blocks; in full also 1 thread and 32 blocks."""
    single = [Case(((side, side),), threads, 4) for side in (16, 32, 64)]
    chosen = [*single, Case(MIXED, threads, 4)]
    if quick:
        return chosen
    return [*chosen, *(Case(case.grids, 1, 4) for case in single), Case(((32, 32),), threads, 32)]


def show(rows: list[dict[str, Any]], console: Console) -> None:
    """A table for people."""
    table = Table(title="compact 7B tower on the CPU, bfloat16")
    for name in ("tower", "patches", "images", "blocks", "threads", "p50 ms", "p90 ms", "of GEMM rate", "error", "MiB"):
        table.add_column(name)
    for row in rows:
        share, error, peak = row["share_of_gemm_rate"], row["max_error"], row["peak_bytes"]
        table.add_row(
            row["name"],
            *(str(row[key]) for key in ("patches", "images", "blocks", "threads")),
            f"{row['p50_ms']:.1f}",
            f"{row['p90_ms']:.1f}",
            "" if share is None else f"{share:.0%}",
            "" if error is None else f"{error:.1e}",
            "" if peak is None else f"{peak / 2**20:.0f}",
        )
    console.print(table)


def main(
    repeats: Annotated[int, typer.Option(help="Timed rounds of each.")] = 5,
    quick: Annotated[bool, typer.Option("--quick", help="4 blocks, all threads only.")] = False,
    out: Annotated[Path | None, typer.Option("--json", help="Another result file.")] = None,
) -> None:
    """Time every way to run one compact tower, interleaved; exits with status 1 if an output is wrong."""
    console = Console()
    threads = torch.get_num_threads()
    rows: list[dict[str, Any]] = []
    with torch.inference_mode():
        for case in cases(quick, threads):
            rows += measure(case, repeats)
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(),
        "environment": environment(),
        "gemm_tflops": max(row["gemm_tflops"] for row in rows),
        "rows": rows,
    }
    path = out or Path(__file__).parent / "results" / machine_name() / "cpu_tower.json"
    write_text(path, json.dumps(result, indent=1) + "\n")
    show(rows, console)
    raise typer.Exit(int(not all(row["checked"] for row in rows if row["max_error"] is not None)))


if __name__ == "__main__":
    typer.run(main)
