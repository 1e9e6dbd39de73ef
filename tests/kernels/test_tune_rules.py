"""Rules from made-up timings: near the fastest tile everywhere, and for every size."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from infoprune_kernels.configs import ConfigTable, Rule, Tile, as_json, read, tables
from infoprune_kernels.tune.rules import MARGIN, Timing, decide

TILES = [Tile(rows, 64, 4, stages, block_k) for rows in (64, 128) for stages in (2, 3) for block_k in (None, 64)]
MICROSECONDS = st.floats(1, 10)
SIZES = st.integers(1, 10**6)


def table(rules: tuple[Rule, ...]) -> ConfigTable:
    return replace(tables()[0], rules={"some": rules})


@st.composite
def timings(draw: st.DrawFn, names: tuple[str, ...] = ("outputs", "inputs", "tokens")) -> list[Timing]:
    """Not every combination of sizes, nor every tile at every size."""
    values = {name: draw(st.lists(SIZES, min_size=1, max_size=4, unique=True)) for name in names}
    cells = draw(
        st.lists(st.tuples(*(st.sampled_from(values[name]) for name in names)), min_size=1, max_size=12, unique=True)
    )
    tiles = st.sampled_from([None, *TILES])
    return [
        Timing("some", dict(zip(names, cell, strict=True)), tile, time)
        for cell in cells
        for tile, time in draw(st.dictionaries(tiles, MICROSECONDS, min_size=1)).items()
    ]


def times_at(found: list[Timing], sizes: dict[str, int]) -> dict[Tile | None, float]:
    return {timing.tile: timing.microseconds for timing in found if timing.sizes == sizes}


@given(found=timings())
def test_at_every_measured_size_the_tile_is_within_the_margin_of_the_fastest(found: list[Timing]) -> None:
    decided = table(decide(found))
    for sizes in (timing.sizes for timing in found):
        times = times_at(found, sizes)
        assert times[decided.find("some", **sizes)] <= (1 + MARGIN) * min(times.values()) * (1 + 1e-9)


@given(found=timings(("tokens",)))
def test_a_tile_changes_between_neighbours_only_for_more_than_the_margin(found: list[Timing]) -> None:
    decided = table(decide(found))
    for size, larger in pairwise(sorted({timing.sizes["tokens"] for timing in found})):
        tile, other = decided.find("some", tokens=size), decided.find("some", tokens=larger)
        times = times_at(found, {"tokens": larger})
        if tile != other and tile in times:
            assert times[tile] > (1 + MARGIN) * min(times.values())


@given(found=timings(), sizes=st.tuples(SIZES, SIZES, SIZES))
def test_every_size_is_served(found: list[Timing], sizes: tuple[int, int, int]) -> None:
    """Where tiles were the only choice: also sizes between and beyond the measured ones."""
    found = [replace(timing, tile=timing.tile or TILES[0]) for timing in found]
    outputs, inputs, tokens = sizes
    assert table(decide(found)).find("some", outputs=outputs, inputs=inputs, tokens=tokens)


@given(found=timings(("rank", "tokens")), rank=SIZES, tokens=SIZES)
def test_a_size_that_ends_is_not_served_beyond_the_largest(found: list[Timing], rank: int, tokens: int) -> None:
    decided = table(decide(found, ends=("rank",)))
    largest = max(timing.sizes["rank"] for timing in found)
    assert decided.find("some", rank=largest + rank, tokens=tokens) is None


@given(found=timings(("rank", "tokens")))
def test_limits_rise(found: list[Timing]) -> None:
    """By rank first, and for each rank by tokens; an open limit comes last."""
    limits = [(rule.up_to.get("rank", float("inf")), rule.up_to.get("tokens", float("inf"))) for rule in decide(found)]
    assert limits == sorted(set(limits))


@given(found=timings(), name=st.sampled_from(["nvidia_h200", "some"]))
def test_rules_survive_a_file(tmp_path_factory: object, found: list[Timing], name: str) -> None:
    given = replace(table(decide(found)), name=name, provenance={"versions": {"torch": "2.11"}})
    path = tmp_path_factory.mktemp("configs") / f"{name}.json"  # type: ignore[attr-defined]
    path.write_text(json.dumps(as_json(given)))
    assert read(path) == given


def test_shipped_tables_survive_a_file(tmp_path: Path) -> None:
    for shipped in tables():
        path = tmp_path / f"{shipped.name}.json"
        path.write_text(json.dumps(as_json(shipped)))
        assert read(path) == shipped


def test_times_of_one_size_add_up_and_a_tile_that_lacks_one_is_out() -> None:
    """A single image and a pack of as many tokens."""
    slow, fast, partial = TILES[:3]
    sizes = {"tokens": 100}
    taken = {slow: (9, 2), fast: (5, 5), partial: (1,)}
    found = [Timing("some", sizes, tile, time) for tile, times in taken.items() for time in times]
    assert decide(found) == (Rule({}, fast),)


def test_rules_by_hand() -> None:
    """Ranks up to 128 alike, but for few tokens; of rank 256 nothing."""
    small, large = TILES[0], TILES[4]
    times = {
        (64, 100): {small: 10, large: 15, None: 12},
        (64, 900): {small: 30, large: 20, None: 25},
        (128, 100): {small: 10.2, large: 10, None: 12},
        (128, 900): {small: 40, large: 20, None: 25},
        (256, 100): {small: 20, large: 20, None: 15},
        (256, 900): {small: 20, large: 20, None: 15},
    }
    found = [
        Timing("some", {"rank": rank, "tokens": tokens}, tile, time)
        for (rank, tokens), by_tile in times.items()
        for tile, time in by_tile.items()
    ]
    rules = (Rule({"rank": 128, "tokens": 100}, small), Rule({"rank": 128}, large))
    assert decide(found) == rules
    assert decide(found[:12], ends=("rank",)) == rules
    assert decide([]) == ()
