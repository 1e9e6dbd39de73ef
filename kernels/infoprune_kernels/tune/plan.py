"""At which sizes tiles are timed, which ones, and what follows from the times."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from infoprune_kernels.attention_parts import HEAD_DIMS
from infoprune_kernels.configs import ConfigTable, Rule, Tile
from infoprune_kernels.ffn_lowrank import two_products
from infoprune_kernels.tune.attention_problem import Attention
from infoprune_kernels.tune.candidates import Limits, attention_tiles, hopper_tiles, lowrank_tiles, product_tiles
from infoprune_kernels.tune.linear_problems import DenseFirst, Linear, LowRank, QkvRope
from infoprune_kernels.tune.measure import Task, Timed
from infoprune_kernels.tune.problem import Choice, Problem
from infoprune_kernels.tune.rules import Timing, decide

# Qwen2-VL-7B's tower, whole and pruned, at images from thumbnails to the largest.
TOKENS = (256, 1024, 1564, 4096, 12100)
PACKS = ((1564, 1024, 852, 400, 256), (4096, 2704, 1564, 1296, 1024, 640, 420, 256, 100))
WIDTH, HEAD_DIM = 1280, 80
HEADS = (4, 8, 16)
RANKS = (64, 128, 256, 384, 512, 640)
NEURONS = (640, 1280, 5120)

# Sizes beyond which a kernel has no rule: it was compiled for no larger ones.
ENDS = {"attention": ("head_dim",), "attention_hopper": ("head_dim",), "ffn_lowrank": ("rank",)}


# Sizes that are measured before all others, should the time not last: those of the towers' usual images.
PRESSING_TOKENS, PRESSING_RANK = (1564, 4096), 256


def pressing(problem: Problem) -> bool:
    """Whether it is measured before the others."""
    sizes = problem.sizes()
    usual = sizes.get("head_dim", HEAD_DIM) == HEAD_DIM and "neurons" not in sizes
    return problem.tokens in PRESSING_TOKENS and usual and sizes.get("rank", 0) <= PRESSING_RANK


def first_tasks(limits: Limits, table: ConfigTable) -> list[Task]:
    """All but the low-rank FFN's, which wait for the products' rules. The table's own tiles are tried, too."""
    return list(_with_known(_first_tasks(limits), table))


def lowrank_tasks(limits: Limits, table: ConfigTable) -> list[Task]:
    """One kernel against the two products that the table's rules make."""
    tasks = (
        Task(
            LowRank(tokens, WIDTH, rank, two_products(table, tokens, WIDTH, rank)),
            (Choice("ffn_lowrank", None), *_choices("ffn_lowrank", lowrank_tiles(limits, rank))),
        )
        for rank in RANKS
        for tokens in TOKENS
    )
    return list(_with_known(tasks, table))


def _first_tasks(limits: Limits) -> Iterator[Task]:
    for problem in attention_problems():
        plain = _choices("attention", attention_tiles(limits, problem.head_dim))
        yield Task(problem, plain + _choices("attention_hopper", hopper_tiles(limits, problem.head_dim)))
    for tokens in TOKENS:
        for heads in HEADS:
            qkv = QkvRope(tokens, WIDTH, heads, HEAD_DIM)
            # Rotation holds half of the output a second time.
            tiles = product_tiles(limits, 3 * heads * HEAD_DIM, held=64)
            yield Task(qkv, _choices("norm_qkv_rope", tiles))
        # On Hopper the residual, on its way in, holds half of it again.
        residual = product_tiles(limits, WIDTH, held=64 if limits.hopper else 128)
        for inner in sorted({*RANKS, *NEURONS, *(heads * HEAD_DIM for heads in HEADS)}):
            yield Task(Linear(tokens, inner, WIDTH), _choices("linear_residual", residual))
        for rank in RANKS:
            bare = Linear(tokens, WIDTH, rank, bare=True)
            yield Task(bare, _choices("linear_residual", product_tiles(limits, rank)))
        for neurons in NEURONS:
            yield Task(DenseFirst(tokens, WIDTH, neurons), _choices("ffn_dense", product_tiles(limits, neurons)))


def attention_problems() -> list[Attention]:
    """Single images of every head size, and of the towers' own every number of heads and packs of mixed images."""
    kinds = [(8, dim) for dim in HEAD_DIMS] + [(heads, HEAD_DIM) for heads in HEADS if heads != 8]
    packs = [Attention(sum(lengths), 8, HEAD_DIM, lengths) for lengths in PACKS]
    return [Attention(tokens, *kind, (tokens,)) for kind in kinds for tokens in TOKENS] + packs


def _choices(kernel: str, tiles: Sequence[Tile]) -> tuple[Choice, ...]:
    return tuple(Choice(kernel, tile) for tile in tiles)


def _with_known(tasks: Iterator[Task], table: ConfigTable) -> Iterator[Task]:
    for task in tasks:
        known = table.find(task.problem.kernel, **task.problem.sizes())
        choice = Choice(task.problem.kernel, known)
        yield task if known is None or choice in task.choices else replace(task, choices=(*task.choices, choice))


def with_rules(table: ConfigTable, timed: Sequence[Timed]) -> ConfigTable:
    """The table with rules decided anew for every kernel that was timed.

    table: of rules as they were before any of it was timed; they go on serving sizes beyond the ends of those measured.
    """
    rules = dict(table.rules)
    for kernel in dict.fromkeys(found.problem.kernel for found in timed):
        timings = _timings(kernel, timed)
        rules |= {kernel: decide(timings, ENDS.get(kernel, ()), table.rules[kernel])} if timings else {}
    table = replace(table, rules=rules)
    faster = _hopper_rules(table, timed)
    return replace(table, rules=table.rules | ({"attention_hopper": faster} if faster else {}))


def chosen(table: ConfigTable, problem: Problem) -> Choice:
    """What the table has the problem run with."""
    sizes = problem.sizes()
    hopper = table.find("attention_hopper", **sizes) if problem.kernel == "attention" else None
    if hopper:
        return Choice("attention_hopper", hopper)
    return Choice(problem.kernel, table.find(problem.kernel, **sizes))


def _hopper_rules(table: ConfigTable, timed: Sequence[Timed]) -> tuple[Rule, ...]:
    """Against what ``attention`` would take with its own rules."""
    timings = _timings("attention_hopper", timed)
    for found in timed:
        sizes = found.problem.sizes()
        plain = Choice("attention", table.find("attention", **sizes) if found.problem.kernel == "attention" else None)
        if plain in found.microseconds:
            timings.append(Timing("attention_hopper", sizes, None, found.microseconds[plain]))
    measured = {timing.sizes["head_dim"] for timing in timings}
    # It was checked at no other head size: there it serves none of the sizes that it serves at the measured ones.
    timings += [
        replace(timing, sizes=timing.sizes | {"head_dim": dim}, tile=None)
        for dim in HEAD_DIMS
        if dim not in measured
        for timing in tuple(timings)
    ]
    return decide(timings, ENDS["attention_hopper"])


def _timings(kernel: str, timed: Sequence[Timed]) -> list[Timing]:
    return [
        Timing(kernel, found.problem.sizes(), choice.tile, time)
        for found in timed
        for choice, time in found.microseconds.items()
        if choice.kernel == kernel
    ]
