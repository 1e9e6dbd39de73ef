"""Tuning without a device: what is tried fits the chip, what is compiled ahead is found, what falls is dropped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tune_children
from infoprune_kernels.aot import compile_specimen
from infoprune_kernels.attention import specimens as attention_specimens
from infoprune_kernels.attention_hopper import specimens as hopper_specimens
from infoprune_kernels.configs import ConfigTable, Rule, Tile, as_json, read, tables
from infoprune_kernels.ffn_dense import specimens as dense_specimens
from infoprune_kernels.ffn_lowrank import specimens as lowrank_specimens
from infoprune_kernels.linear_residual import specimens as linear_specimens
from infoprune_kernels.norm_qkv_rope import specimens as qkv_specimens
from infoprune_kernels.specimens import Specimen
from infoprune_kernels.tune import candidates
from infoprune_kernels.tune.__main__ import main
from infoprune_kernels.tune.attention_problem import Attention
from infoprune_kernels.tune.candidates import Limits
from infoprune_kernels.tune.linear_problems import Linear, LowRank
from infoprune_kernels.tune.measure import Dropped, Task, Timed
from infoprune_kernels.tune.plan import PACKS, chosen, first_tasks, lowrank_tasks, pressing, with_rules
from infoprune_kernels.tune.problem import Choice, Problem
from infoprune_kernels.tune.processes import Supervisor, jobs
from infoprune_kernels.tune.results import Device, check_writable, oldest, summary, timing_rows, write_json

A100, H100 = Limits(80, 166912), Limits(90, 232448)
Estimate = tuple[list[Tile], Callable[[Tile], int], Callable[[ConfigTable], list[Specimen]]]


def estimates(limits: Limits) -> dict[str, Estimate]:
    """Tiles that arithmetic admits, the bytes that it reckons for them, and specimens of a table that has them."""
    return {
        "attention of 72": (
            candidates.attention_tiles(limits, 72),
            lambda tile: candidates.attention_bytes(limits, tile, 72),
            lambda table: [s for s in attention_specimens(table) if s.constexprs["D"] == 72],
        ),
        "attention of 128": (
            candidates.attention_tiles(limits, 128),
            lambda tile: candidates.attention_bytes(limits, tile, 128),
            lambda table: [s for s in attention_specimens(table) if s.constexprs["D"] == 128],
        ),
        "hopper's attention of 96": (
            candidates.hopper_tiles(limits, 96),
            lambda tile: candidates.hopper_bytes(tile, 96),
            lambda table: [s for s in hopper_specimens(table) if s.constexprs["D"] == 96],
        ),
        "qkv": (
            candidates.product_tiles(limits, 1920, held=64),
            lambda tile: candidates.product_bytes(limits, tile),
            lambda table: qkv_specimens(table)[:1],
        ),
        "linear": (
            candidates.product_tiles(limits, 1280),
            lambda tile: candidates.product_bytes(limits, tile),
            lambda table: linear_specimens(table)[:1],
        ),
        "fc1": (
            candidates.product_tiles(limits, 5120),
            lambda tile: candidates.product_bytes(limits, tile),
            lambda table: dense_specimens(table)[:1],
        ),
        "gated fc1": (
            candidates.product_tiles(limits, 2 * 3420),
            lambda tile: candidates.product_bytes(limits, tile),
            lambda table: dense_specimens(table)[1:2],
        ),
        "low rank of 384": (
            candidates.lowrank_tiles(limits, 384),
            lambda tile: candidates.lowrank_bytes(limits, tile, 384),
            lambda table: [s for s in lowrank_specimens(table) if s.constexprs.get("RANK") == 384],
        ),
    }


@pytest.mark.parametrize("kind", estimates(H100))
@pytest.mark.parametrize("limits", [A100, H100], ids=["sm_80", "sm_90"])
def test_what_is_admitted_fits_the_chip(limits: Limits, kind: str) -> None:
    """The largest tile and a small one, compiled: never more shared memory than reckoned, never more than there is."""
    tiles, reckoned, specimens = estimates(limits)[kind]
    assert tiles or (kind.startswith("hopper") and not limits.hopper)
    for tile in {choice(tiles, key=reckoned) for choice in (min, max) if tiles}:
        kernels = ("attention", "attention_hopper", "norm_qkv_rope", "linear_residual", "ffn_lowrank", "ffn_dense")
        table = replace(tables()[-1], arch=limits.arch, rules={kernel: (Rule({}, tile),) for kernel in kernels})
        (specimen,) = specimens(table)
        taken = compile_specimen(specimen, limits.arch).shared_bytes
        assert taken <= reckoned(tile) <= limits.shared_bytes


def test_too_large_tiles_are_not_admitted() -> None:
    """By shared memory, by registers, and by what Hopper's tensor cores take."""
    small = Limits(86, 20000)
    assert candidates.lowrank_tiles(H100, 640) == []
    assert candidates.lowrank_tiles(A100, 640)
    assert candidates.attention_tiles(small, 128) == []
    assert candidates.hopper_tiles(A100, 80) == []
    for limits in (A100, H100):
        table = tables()[-1]
        tiles = {c.tile for task in first_tasks(limits, table) for c in task.choices if c.tile}
        assert (min(tile.block_m for tile in tiles) >= 64) == limits.hopper
        assert max(tile.block_m * tile.block_n / tile.num_warps for tile in tiles) <= 128 * 32


AHEAD = """
import triton
from infoprune_kernels.configs import Tile
from infoprune_kernels.tune.attention_problem import Attention
from infoprune_kernels.tune.linear_problems import Linear, LowRank
from infoprune_kernels.tune.measure import Task
from infoprune_kernels.tune.problem import Choice
from infoprune_kernels.tune.processes import _compile, _only_compile, compile_ahead, jobs
tile = Tile(64, 64, 4, 3, 64)
def tasks(tokens):
    lowrank = (Choice("ffn_lowrank", None), Choice("ffn_lowrank", tile))
    return [
        Task(Linear(tokens, 640, 1280), (Choice("linear_residual", tile),)),
        Task(LowRank(tokens, 1280, 64, (tile, tile)), lowrank),
        Task(Attention(tokens, 2, 80, (tokens,)), (Choice("attention", Tile(64, 64, 4, 2)),)),
    ]
"""


def test_what_is_compiled_ahead_is_what_a_launch_looks_for(tmp_path: Path) -> None:
    """In one session compiled; in another one, with other token counts, all of it lies in Triton's cache."""
    # Sixty columns are no power of two: that tile is not counted, and does not stop the others.
    impossible = 'Task(Linear(9, 640, 1280), (Choice("linear_residual", Tile(64, 60, 4, 3, 64)),))'
    ahead = f"work = jobs([*tasks(256), *tasks(1564), {impossible}])\nprint(len(work), compile_ahead(work, 80))"
    assert run_session(AHEAD + ahead, tmp_path) == "4 3"
    launched = """
hits = []
triton.knobs.compilation.listener = lambda *, cache_hit, **_: hits.append(cache_hit)
_only_compile(80)
assert all(_compile((task.problem, choice)) for task in tasks(48) for choice in task.choices if choice.tile)
print(hits)
"""
    assert run_session(AHEAD + launched, tmp_path) == "[True, True, True]"


def run_session(program: str, cache: Path) -> str:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache)}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def linear_task(tokens: int, *warps: int) -> Task:
    return Task(Linear(tokens, 64, 64), tuple(Choice("linear_residual", Tile(64, 64, count, 2, 64)) for count in warps))


def test_what_kills_or_stops_the_measuring_process_is_dropped_and_the_rest_is_measured() -> None:
    told: list[Dropped | Timed] = []
    tasks = [linear_task(1, 8, 5), linear_task(2, 4, 1, 3, 6, 8), linear_task(3, 4, 5, 8)]
    timed = Supervisor(tune_children.fallible, told.append).measure(tasks)
    hanging = Supervisor(tune_children.fallible, told.append, patience=5).measure([linear_task(4, 2, 4)])
    four, eight = (Choice("linear_residual", Tile(64, 64, count, 2, 64)) for count in (4, 8))
    # Of five warps the times of the first problem are gone, too: it was wrong on the last.
    assert [found.microseconds for found in timed] == [{eight: 1.0}, {four: 2.0, eight: 2.0}, {four: 3.0, eight: 3.0}]
    assert [found.microseconds for found in hanging] == [{four: 4.0}]
    reasons = [(m.choice.some_tile.num_warps, m.reason) for m in told if isinstance(m, Dropped) and m.choice]
    assert reasons == [
        (1, "ended with exit code 7"),
        (3, "ended by RuntimeError: an illegal memory access"),
        (6, "does not run"),
        (5, "is wrong"),
        (2, "said nothing for 5 s"),
    ]


def test_a_problem_that_does_not_fit_is_left_out() -> None:
    tasks = [linear_task(1, 4), linear_task(2, 4), linear_task(1, 8)]
    timed = Supervisor(tune_children.small, lambda _: None).measure(tasks)
    assert [found.problem.tokens for found in timed] == [1, 1]


def test_a_device_on_which_nothing_starts_has_no_times() -> None:
    told: list[Dropped | Timed] = []
    assert Supervisor(tune_children.unfit, told.append).measure([linear_task(1, 4), linear_task(2, 4)]) == []
    reason = "ended by RuntimeError: no device before it tried a kernel"
    assert told == [Dropped(linear_task(1).problem, None, reason)]


def test_what_was_timed_is_kept_when_processes_fall_before_they_try_anything() -> None:
    """In a problem's inputs, which is nobody's fault that was tried before; and at once, from then on."""
    told: list[Dropped | Timed] = []
    supervisor = Supervisor(tune_children.short_lived, told.append)
    timed = supervisor.measure([linear_task(tokens, 4, 8) for tokens in (1, 2, 3, 4, 5)])
    assert [found.problem.tokens for found in timed] == [1, 3]
    reasons = [(each.problem.tokens, each.choice, each.reason) for each in told if isinstance(each, Dropped)]
    ended = "ended with exit code 7 before it tried a kernel"
    assert reasons == [(2, None, ended), (4, None, ended), (5, None, ended)]
    assert not any(each.wrong for each in told if isinstance(each, Dropped))


def test_a_choice_that_was_wrong_stays_out_of_what_is_measured_later() -> None:
    supervisor = Supervisor(tune_children.fallible, lambda _: None)
    supervisor.measure([linear_task(2, 4, 5)])
    (_, later) = supervisor.measure([linear_task(1, 5, 8)])
    assert [choice.some_tile.num_warps for choice in later.microseconds] == [8]


def test_when_the_time_is_up_what_was_timed_remains() -> None:
    """A process that hangs is not waited for, and no further one begins."""
    told: list[Dropped | Timed] = []

    def tell(message: Dropped | Timed) -> None:
        told.append(message)
        supervisor.until = time.monotonic() + 1

    supervisor = Supervisor(tune_children.fallible, tell, patience=600)
    timed = supervisor.measure([linear_task(1, 4), linear_task(2, 2), linear_task(3, 4)])
    assert [found.problem.tokens for found in timed] == [1]
    assert told == timed
    assert supervisor.measure([linear_task(3, 4)]) == timed


def pretend(task: Task, microseconds: Callable[[Problem, Choice], float]) -> Timed:
    return Timed(task.problem, {choice: microseconds(task.problem, choice) for choice in task.choices})


def made_up(problem: Problem, choice: Choice) -> float:
    """Small tiles are best for few tokens, Hopper's kernel from 4096 tokens on, one low-rank kernel up to rank 256."""
    many = problem.tokens >= 4096
    if choice.kernel == "attention_hopper":
        return 5.0 if many else 50.0
    if isinstance(problem, LowRank):
        return 10.0 if choice.tile is None else 20.0 if problem.rank > 256 else 5.0
    return 10.0 + abs(choice.some_tile.block_m * choice.some_tile.block_n - (128 * 128 if many else 64 * 64)) / 1000


@pytest.fixture(scope="module")
def tuned() -> tuple[ConfigTable, list[Timed]]:
    """A table as tuning makes it on an H200, of made-up times."""
    table = replace(tables()[-1], name="nvidia_h200", devices=("NVIDIA H200",), measured=True)
    timed = [pretend(task, made_up) for task in first_tasks(H100, table)]
    timed += [pretend(task, made_up) for task in lowrank_tasks(H100, with_rules(table, timed))]
    return with_rules(table, timed), timed


def test_a_tuned_table_serves_every_operator_by_what_was_fastest(tuned: tuple[ConfigTable, list[Timed]]) -> None:
    table, timed = tuned
    for found in timed:
        best = min(found.microseconds.values())
        assert found.microseconds[chosen(table, found.problem)] <= 1.03 * best
    assert table.find("attention_hopper", head_dim=80, heads=9, tokens=1564) is None
    assert table.find("attention_hopper", head_dim=80, heads=9, tokens=10**6)
    assert table.find("attention_hopper", head_dim=129, heads=9, tokens=10**6) is None
    assert table.find("ffn_lowrank", rank=200, width=1280, tokens=10**6)
    assert table.find("ffn_lowrank", rank=300, width=1280, tokens=10**6) is None
    for dim in (16, 72, 128):
        assert table.choose("attention", head_dim=dim, heads=3, tokens=500)
    for kernel in ("norm_qkv_rope", "linear_residual", "ffn_dense"):
        assert table.choose(kernel, tokens=10**6, inputs=10**5, outputs=10**5, width=10**5, neurons=10**5)


def test_what_was_not_measured_keeps_its_rules_of_arithmetic() -> None:
    """Where there was time for what presses alone, and then not even for all of that."""
    before = next(table for table in tables() if table.name == "h100")
    tasks = [task for task in first_tasks(H100, before) if pressing(task.problem)]
    assert {str(task.problem) for task in tasks} >= {
        "attention, head_dim 80, heads 8, tokens 1564",
        "linear_residual, outputs 1280, inputs 640, tokens 4096",
    }
    timed = [pretend(task, made_up) for task in tasks]
    timed += [pretend(task, made_up) for task in lowrank_tasks(H100, before) if pressing(task.problem)]
    table = with_rules(before, timed)
    assert table.rules["ffn_dense"] == before.rules["ffn_dense"]
    for tokens in (300, 5000, 20000):
        for sizes in ({"head_dim": 96, "heads": 8}, {"head_dim": 128, "heads": 3}):
            kept = before.find("attention", **sizes, tokens=tokens)
            assert kept == table.find("attention", **sizes, tokens=tokens)
        assert table.find("ffn_lowrank", rank=500, tokens=tokens) == before.find("ffn_lowrank", rank=500, tokens=tokens)
        assert table.find("ffn_lowrank", rank=256, tokens=tokens)
        for dim in (16, 64, 72, 96):
            assert table.find("attention_hopper", head_dim=dim, heads=8, tokens=tokens) is None
    assert table.find("attention_hopper", head_dim=80, heads=8, tokens=5000)
    few = with_rules(before, timed[:1])
    assert {kernel for kernel in before.rules if few.rules[kernel] != before.rules[kernel]} == {"attention"}


def test_what_tuning_writes_can_be_read(tuned: tuple[ConfigTable, list[Timed]], tmp_path: Path) -> None:
    table, timed = tuned
    path = tmp_path / "deep" / "nvidia_h200.json"
    check_writable(path)
    told = {
        "date": "2026-01-01",
        "versions": {"torch": "2.11"},
        "clocks": {},
        "command": "python -m ...",
        "margin": 0.03,
    }
    write_json(path, as_json(replace(table, provenance=told)))
    assert read(path) == replace(table, provenance=told)
    lost = Dropped(timed[0].problem, None, "does not fit in the device's memory")
    bad = Dropped(timed[0].problem, Choice("attention_hopper", Tile(64, 64, 4, 2)), "is wrong", wrong=True)
    write_json(path, timing_rows(timed, [lost, bad]))
    rows, dropped = (json.loads(path.read_text())[name] for name in ("rows", "dropped"))
    assert [(each["kernel"], each["choice"], each["wrong"]) for each in dropped] == [
        ("attention", None, False),
        ("attention_hopper", "attention_hopper, 64x64, 4 warps, 2 stages", True),
    ]
    assert len(rows) == sum(len(found.microseconds) for found in timed)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_the_summary_has_a_line_per_problem_with_its_share_of_the_floor(
    tuned: tuple[ConfigTable, list[Timed]],
) -> None:
    table, timed = tuned
    _, *lines = summary(table, timed, Device("NVIDIA H200", 90, 232448, "")).splitlines()
    assert len(lines) == len(timed)
    # 4 · 1564² · 8 · 80 products at 989.4 TFLOP/s are 6.3 µs, and 10 µs were pretended.
    (line,) = (line for line in lines if "attention, head_dim 80, heads 8, tokens 1564" in line)
    assert line.split()[-3:] == ["10.0", "63", "%"]
    unknown = summary(table, timed, Device("Some GPU", 90, 232448, "")).splitlines()
    assert all(line.split()[-1] == "-" for line in unknown[1:])


def test_packs_are_of_as_many_tokens_as_single_images() -> None:
    """Their times add up."""
    alone = {problem.sizes()["tokens"] for problem in (Attention(n, 8, 80, (n,)) for n in (4096, 12100))}
    assert {sum(lengths) for lengths in PACKS} == alone


def test_token_counts_share_what_is_compiled() -> None:
    tasks = first_tasks(H100, tables()[-1]) + lowrank_tasks(H100, tables()[-1])
    assert len(jobs(tasks)) < sum(len(task.choices) for task in tasks) / 4


def test_what_cannot_be_tuned_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main([]) == 1
    assert (
        capsys.readouterr().err == "tune: no CUDA device is at hand: tiles are timed on the device that they are for\n"
    )
    assert main(["--seconds", "0"]) == 1
    assert capsys.readouterr().err == "tune: --seconds must be above 0, not 0\n"
    with pytest.raises(ValueError, match=r"Tesla T4 has compute capability 7\.5; the kernels need 8\.0 at least"):
        oldest("Tesla T4", 7, 5)
    oldest("NVIDIA A100", 8, 0)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file cannot be written \(.*\): no place for timings\.json"):
        check_writable(tmp_path / "file" / "timings.json")
