"""What the GPU engine is meant to reach on a Hopper GPU, and what the rows say it reached; ratios of medians."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from infoprune_rt.benchmarking.gpu import operators, towers
from infoprune_rt.benchmarking.gpu.attention_peers import SDPA_BACKENDS
from infoprune_rt.benchmarking.gpu.measuring import Row
from infoprune_rt.benchmarking.targets import Target

LARGEST_RANK = 256


def operator_goals(rows: Sequence[Row]) -> list[Target]:
    """Of attention and the low-rank FFN; each is the least over head counts, or over ranks. Those that rows answer."""
    wanted = [
        *(
            _at_least(
                f"attention, heads of 80, {tokens} patches: times as fast as the best SDPA backend",
                _least(_of(rows, "attention", tokens, images=1), "heads", operators.OURS, SDPA_BACKENDS),
                1.15,
            )
            for tokens in operators.ATTENTION_TOKENS
        ),
        *(
            _at_least(
                f"FFN of rank {LARGEST_RANK} or less, {tokens} patches: times as fast as two products in a graph",
                _least(_small_ranks(rows, tokens), "rank", operators.OURS, [operators.TWO_PRODUCTS]),
                1.3,
            )
            for tokens in operators.TOKENS
        ),
    ]
    return [goal for goal in wanted if goal is not None]


def tower_goals(rows: Sequence[Row]) -> list[Target]:
    """Of the whole tower; ours is what replays graphs, but for memory also what does not. Those that rows answer."""
    wanted = []
    for tokens in (1564, 4096):
        case = [row for row in rows if row["patches"] == tokens and row["images"] == 1]
        by_name = {row["name"]: row for row in case}
        graphs, dense = by_name.get(towers.GRAPHS), by_name.get(towers.DENSE)
        wanted += [
            _at_least(
                f"tower, {tokens} patches: times as fast as torch.compile(max-autotune)",
                _least(case, "patches", towers.GRAPHS, [towers.COMPILED]),
                1.3,
            ),
            _at_least(
                f"tower, {tokens} patches: times as fast as transformers' dense",
                _least(case, "patches", towers.GRAPHS, [towers.DENSE]),
                4,
            ),
            _at_most(
                f"tower, {tokens} patches: extra memory over transformers', with what all graphs hold",
                _over(graphs, dense, "extra_bytes"),
                0.4,
            ),
            _at_most(
                f"tower, {tokens} patches: extra memory over transformers', without graphs",
                _over(by_name.get(towers.EAGER), dense, "extra_bytes"),
                0.4,
            ),
        ]
        if tokens == 1564:
            name = f"one image of 640 x 480 ({tokens} patches) through 32 blocks, ends included: time over its floor"
            wanted.append(_at_most(name, _over(graphs, graphs, "p50_us", "floor_us"), 1.5))
    return [goal for goal in wanted if goal is not None]


def _of(rows: Sequence[Row], operator: str, tokens: int, **sizes: int) -> list[Row]:
    wanted = {"operator": operator, "patches": tokens, **sizes}
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


def _small_ranks(rows: Sequence[Row], tokens: int) -> list[Row]:
    return [row for row in _of(rows, "ffn_lowrank", tokens) if row["rank"] <= LARGEST_RANK]


def _least(rows: Sequence[Row], over: str, ours: str, peers: Collection[str]) -> float | None:
    """How many times as fast ours is as the best of the peers, the least over a size; None if a size has no answer."""
    ratios = []
    for size in {row[over] for row in rows}:
        same = [row for row in rows if row[over] == size]
        ratios.append(_ratio(same, lambda row: row["name"] in peers, lambda row: row["name"] == ours))
    known = [ratio for ratio in ratios if ratio is not None]
    return min(known) if known and len(known) == len(ratios) else None


def _ratio(rows: Sequence[Row], above: Callable[[Row], bool], below: Callable[[Row], bool]) -> float | None:
    """The least median of some rows over that of others; None where either was not measured."""
    times = [[row["p50_us"] for row in rows if chosen(row) and row["p50_us"] is not None] for chosen in (above, below)]
    return min(times[0]) / min(times[1]) if all(times) else None


def _over(row: Row | None, other: Row | None, key: str, other_key: str | None = None) -> float | None:
    """A figure of one row over one of another; None where either was not measured."""
    if row is None or other is None:
        return None
    above, below = row.get(key), other.get(other_key or key)
    return None if above is None or not below else above / below


def _at_least(name: str, reached: float | None, bound: float) -> Target | None:
    return None if reached is None else Target(name, reached, at_least=bound)


def _at_most(name: str, reached: float | None, bound: float) -> Target | None:
    return None if reached is None else Target(name, reached, at_most=bound)
