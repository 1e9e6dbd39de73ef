"""From timings to rules: which tile a kernel is launched with at which sizes. Nothing here asks for a device."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from infoprune_kernels.configs import Rule, Tile

# Two tiles this close are the same: a median of a few replays is not known better.
MARGIN = 0.03

Slowness = dict[Tile | None, float]  # a tile's time relative to the fastest one's
Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Timing:
    """What a kernel took at one size with a tile; several of the same size and tile add up.

    sizes: as rules name them, in the order in which rules are cut by them.
    tile: None stands for leaving the size to what serves where the kernel has no rule.
    """

    kernel: str
    sizes: dict[str, int]
    tile: Tile | None
    microseconds: float


def decide(
    timings: Sequence[Timing], ends: Collection[str] = (), before: Sequence[Rule] = (), margin: float = MARGIN
) -> tuple[Rule, ...]:
    """Rules of one kernel, cut by its sizes in their order.

    At each measured size the tile is at most ``margin`` slower than the fastest one. Neighbouring sizes share their
    rules as long as tiles within the margin of all of them are left: a tile is changed for a gain above the margin. A
    size between two measured ones gets the larger one's tile, a size beyond the largest gets that one's, but for the
    sizes named in ``ends``, whose rules end with the largest measured.

    Args:
        timings: of one kernel, all with the same names of sizes; a tile counts where it has all timings of a size.
        ends: names of sizes.
        before: rules that go on serving what lies beyond these ends.
        margin: relative.
    """
    if not timings:
        return ()
    names = tuple(timings[0].sizes)
    found = list(_rules(_slowness(timings), names, ends, margin))
    largest = {name: max(timing.sizes[name] for timing in timings) for name in ends}
    found += [rule for rule in before if any(rule.up_to.get(name, math.inf) > largest[name] for name in largest)]
    while found and found[-1].tile is None:  # no rule says the same
        found.pop()
    return tuple(found)


def _slowness(timings: Iterable[Timing]) -> dict[Sizes, Slowness]:
    times: dict[Sizes, dict[Tile | None, list[float]]] = {}
    for timing in timings:
        of_size = times.setdefault(tuple(timing.sizes.values()), {})
        of_size.setdefault(timing.tile, []).append(timing.microseconds)
    found = {}
    for sizes, by_tile in sorted(times.items()):
        whole = max(map(len, by_tile.values()))
        sums = {tile: sum(parts) for tile, parts in by_tile.items() if len(parts) == whole}
        found[sizes] = {tile: time / min(sums.values()) for tile, time in sums.items()}
    return found


def _rules(cells: dict[Sizes, Slowness], names: Sequence[str], ends: Collection[str], margin: float) -> Iterator[Rule]:
    """Cut by the first size, and within its groups by the others; limits rise, and the last one is open."""
    if not names:
        (slowness,) = cells.values()
        yield Rule({}, min(slowness, key=slowness.__getitem__))
        return
    groups = _groups(cells, margin)
    for place, (largest, within) in enumerate(groups):
        limited = place < len(groups) - 1 or names[0] in ends
        for rule in _rules(within, names[1:], ends, margin):
            yield Rule(({names[0]: largest} if limited else {}) | rule.up_to, rule.tile)


def _groups(cells: dict[Sizes, Slowness], margin: float) -> list[tuple[int, dict[Sizes, Slowness]]]:
    """Neighbouring values of the first size for which the same rules do, joined from the smallest on."""
    groups: list[tuple[int, dict[Sizes, Slowness]]] = []
    for value in sorted({sizes[0] for sizes in cells}):
        within = {sizes[1:]: slowness for sizes, slowness in cells.items() if sizes[0] == value}
        joined = groups and _joined(groups[-1][1], within)
        if joined and all(min(slowness.values(), default=float("inf")) <= 1 + margin for slowness in joined.values()):
            groups[-1] = (value, joined)
        else:
            groups.append((value, within))
    return groups


def _joined(one: dict[Sizes, Slowness], other: dict[Sizes, Slowness]) -> dict[Sizes, Slowness]:
    """Cells of both; where both have one, the tiles that both have, each as slow as in its slower one."""
    common = {
        sizes: {tile: max(slow, other[sizes][tile]) for tile, slow in slowness.items() if tile in other[sizes]}
        for sizes, slowness in one.items()
        if sizes in other
    }
    return one | other | common
