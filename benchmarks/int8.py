"""What int8 weights cost and give: accuracy on the tiny VLM; error, bytes and time at the 7B tower's sizes.

Writes benchmarks/results/<machine>/int8.json. Accuracy is measured on the scenes of ``tiny_vlm.py``; the 7B tower has
random weights, so that its errors are those of arithmetic alone. Times are those of the C++ kernels, blocks alone and
the whole tower (whose patch embedding and merger are never quantised), all in turns.
"""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table
from tiny_vlm import GATES, KEEP, NEURONS, Study
from torch import Tensor

from infoprune_rt.benchmarking.cpu_tower.cases import Case, compact_tower
from infoprune_rt.benchmarking.environment import command, environment, machine_name
from infoprune_rt.benchmarking.timing import interleaved, percentiles
from infoprune_rt.compression import quantize_tower
from infoprune_rt.evaluation.training_batches import VQABatches
from infoprune_rt.files import write_text
from infoprune_rt.plan import FFNPlan
from infoprune_rt.pruning.head_methods import score_heads
from infoprune_rt.pruning.selection import budget
from infoprune_rt.runtime.encoder import CompactEncoder
from infoprune_rt.towers.qwen2_vl import embed_patches, pack

SIDES = (32, 64)  # patch rows and columns of the 7B tower's two pictures
OURS = "heads 50 %, refit, neurons"
# Name, dtype, whether quantised, backend.
WAYS = (
    ("bfloat16, plain", torch.bfloat16, False, "plain"),
    ("int8, plain in float32", torch.float32, True, "plain"),
    ("int8, plain", torch.bfloat16, True, "plain"),
    ("bfloat16, csrc", torch.bfloat16, False, "csrc"),
    ("int8, csrc", torch.bfloat16, True, "csrc"),
)


def block_bytes(tower: CompactEncoder) -> int:
    """What all parameters of the blocks take."""
    return sum(parameter.nbytes for parameter in tower.blocks.parameters())


# ------------------------------------------------------------------ accuracy


def tiny_vlm_rows(folder: Path, scenes: int, console: Console) -> list[dict[str, Any]]:
    """The dense tower, its FFNs cut, and our recipe, each with and without int8."""
    study = Study(folder, scenes, console)
    dtype = next(study.bench.dense.parameters()).dtype
    stored = str(dtype).removeprefix("torch.")
    study.add("dense", stored, study.answered(), bytes=dtype.itemsize * study.dense["parameters"])
    float_ = study.bench.variant("dense", "dense", study.bench.plan()).tower
    measure(study, "dense", "int8", quantize_tower(float_))
    neurons = FFNPlan(mode="neurons", size=NEURONS)
    for group, masks in ((f"FFN neurons {NEURONS}", None), (OURS, better_half(study))):
        float_ = study.bench.variant(group, group, study.bench.plan(masks, neurons)).tower
        measure(study, group, stored, float_)
        measure(study, group, "int8", quantize_tower(float_))
    return study.rows


def better_half(study: Study) -> Tensor:
    """The heads that zeta keeps, [L, H] bool; one gate seed, as ``tiny_vlm.py`` trains it."""
    batches = VQABatches(study.calibration, study.vlm.processor)
    folder = study.folder / "zeta"
    scores = score_heads("zeta", study.vlm.model, study.vlm.adapter, batches, GATES, folder, Accelerator(cpu=True))
    return budget(scores, KEEP)


def measure(study: Study, group: str, name: str, tower: CompactEncoder) -> None:
    """Accuracy with this tower in the model."""
    with study.bench.in_place(tower):
        study.add(group, name, study.answered(), study.bench.sizes(tower, 64), bytes=block_bytes(tower))


# ------------------------------------------------------------------ the 7B tower's sizes


def fullsize_rows(side: int, blocks: int, repeats: int) -> list[dict[str, Any]]:
    """Every way to run one compact tower (8 heads, rank 128) on one picture: error, bytes, and times of the kernels."""
    case = Case(((side, side),), torch.get_num_threads(), blocks)
    pixels, grid = case.inputs()
    tower = compact_tower(blocks)
    exact = tower(pixels, grid).last_hidden_state
    rows, runs = [], {}
    for name, dtype, int8, backend in WAYS:
        # Quantised from float32, as compress does it.
        other = (quantize_tower(tower) if int8 else copy.deepcopy(tower)).to(dtype)
        other.backend = backend
        found = other(pixels, grid).last_hidden_state
        rows.append({"name": name, "patches": case.patches, "blocks": blocks, "threads": case.threads})
        rows[-1] |= {"dtype": str(dtype).removeprefix("torch."), "backend": backend, "bytes": block_bytes(other)}
        rows[-1] |= errors(found.float(), exact)
        if backend == "csrc":
            runs |= passes(name, other, pixels, grid)
    times = {name: percentiles(taken) for name, taken in interleaved(runs, repeats).items()}
    for row in rows:
        for part in ("blocks", "tower"):
            taken = times.get(f"{row['name']}: {part}")
            row |= {f"{part}_{key}_ms": None if taken is None else taken[key] for key in ("p50", "p90")}
    return rows


def passes(name: str, tower: CompactEncoder, pixels: Tensor, grid: Tensor) -> dict[str, Callable[[], Tensor]]:
    """What is timed: the blocks alone, and the whole tower."""
    x = embed_patches(pixels, tower.patch_embed.weight)
    stream = pack(tower.config, grid, x)
    return {
        f"{name}: blocks": lambda: tower.run_blocks(x.clone(), stream),
        f"{name}: tower": lambda: tower(pixels, grid).pooler_output,
    }


def errors(output: Tensor, exact: Tensor) -> dict[str, float]:
    """Of the blocks' output: root mean square over that of the exact one, and largest over the largest."""
    wrong = output - exact
    rms = float(wrong.square().mean().sqrt() / exact.square().mean().sqrt())
    return {"rms_error": rms, "max_error": float(wrong.abs().max() / exact.abs().max())}


# ------------------------------------------------------------------ what is shown


def show(accuracy: list[dict[str, Any]], fullsize: list[dict[str, Any]], console: Console) -> None:
    """Two tables for people."""
    table = Table(title="tiny VLM")
    for name in ("tower", "weights", "block bytes", "VQA", "text", "relations", "all"):
        table.add_column(name)
    for row in accuracy:
        scores = (f"{row['accuracy'][key]:.1f}" for key in ("vqa", "text", "relations", "overall"))
        table.add_row(row["group"], row["name"], f"{row['bytes']:,}", *scores)
    console.print(table)
    table = Table(title=f"compact 7B tower, {fullsize[0]['blocks']} blocks")
    for name in ("tower", "patches", "MB", "RMS error", "largest error", "blocks p50 ms", "p90", "tower p50 ms", "p90"):
        table.add_column(name)
    for row in fullsize:
        times = (row[f"{part}_{key}_ms"] for part in ("blocks", "tower") for key in ("p50", "p90"))
        table.add_row(
            row["name"],
            str(row["patches"]),
            f"{row['bytes'] / 1e6:.1f}",
            f"{row['rms_error']:.1e}",
            f"{row['max_error']:.1e}",
            *("" if taken is None else f"{taken:.1f}" for taken in times),
        )
    console.print(table)


def main(
    scenes: Annotated[int, typer.Option(help="Held-out scenes of 8 questions.")] = 500,
    blocks: Annotated[int, typer.Option(help="Blocks of the 7B tower.")] = 4,
    repeats: Annotated[int, typer.Option(help="Timed rounds.")] = 9,
    out: Annotated[Path | None, typer.Option("--json", help="Another result file.")] = None,
) -> None:
    """Measure int8 weights."""
    console = Console()
    with torch.inference_mode():
        fullsize = [row for side in SIDES for row in fullsize_rows(side, blocks, repeats)]
    with tempfile.TemporaryDirectory() as folder:
        accuracy = tiny_vlm_rows(Path(folder), scenes, console)
    result = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(),
        "environment": environment(),
        "scenes": scenes,
        "rows": accuracy,
        "fullsize_rows": fullsize,
    }
    path = out or Path(__file__).parent / "results" / machine_name() / "int8.json"
    write_text(path, json.dumps(result, indent=1) + "\n")
    show(accuracy, fullsize, console)


if __name__ == "__main__":
    typer.run(main)
