"""Captured CUDA graphs: the answers of eager passes, within their bound of memory, from any stream and thread."""

from __future__ import annotations

import pytest
import torch
from on_gpu import DEVICE, HALVES
from operator_cases import assert_close
from test_gpu_towers import answers, in_threads, on_gpu
from torch import Tensor

from infoprune_rt.benchmarking.cpu_tower.cases import compact_tower
from infoprune_rt.runtime.encoder import CompactEncoder
from infoprune_rt.runtime.graphs import CapturedGraphs

SMALL, LARGE = 512, 1664
MOST_BYTES = 1 << 30
Grids = list[tuple[int, int]]

# Packs that fill a bucket, which serves them whatever it takes.
FULL: dict[str, Grids] = {
    "one image": [(16, 32)],
    "two": [(16, 16), (8, 32)],
    "ragged": [(16, 16), (10, 14), (2, 2), (8, 14)],
    "large": [(32, 52)],
}
OTHERS: dict[str, Grids] = {
    "one patch group": [(2, 2)],
    "nearly full": [(34, 46)],
    "more images than there is room for": [(2, 2)] * 128,
    "above the largest bucket": [(40, 44)],
}


@pytest.fixture(scope="module")
def towers() -> dict[str, CompactEncoder]:
    """Two blocks of the 7B's sizes: captured, eager, on PyTorch's operators, and those in float32."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    tower = compact_tower(blocks=2)
    made = {name: on_gpu(tower, HALVES[0]) for name in ("captured", "eager")}
    made |= {"plain": on_gpu(tower, HALVES[0], "plain"), "exact": on_gpu(tower, torch.float32, "plain")}
    made["captured"].capture_graphs(token_budgets=(SMALL, LARGE), max_bytes=MOST_BYTES)
    return made


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Of each pass that might have been a replay, whether it was."""
    seen: list[bool] = []
    replay = CapturedGraphs.replay

    def watched(graphs: CapturedGraphs, *args: object) -> Tensor | None:
        out = replay(graphs, *args)
        seen.append(out is not None)
        return out

    monkeypatch.setattr(CapturedGraphs, "replay", watched)
    return seen


def pack(grids: Grids) -> tuple[Tensor, Tensor]:
    grid = torch.tensor([(1, height, width) for height, width in grids])
    return torch.randn(int(grid.prod(1).sum()), 1176, device=DEVICE), grid


@pytest.mark.parametrize("name", [*FULL, *OTHERS])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_replay_answers_as_an_eager_pass(
    towers: dict[str, CompactEncoder], served: list[bool], name: str, mode: type[torch.no_grad]
) -> None:
    inputs = pack((FULL | OTHERS)[name])
    with mode():
        made = {name: tower(*inputs).pooler_output for name, tower in towers.items()}
    assert served == [True] or name in OTHERS
    assert_close((made["captured"],), (made["plain"],), (made["exact"],))
    assert_close((made["eager"],), (made["plain"],), (made["exact"],))


@torch.no_grad()
def test_an_answer_is_not_overwritten_by_the_next_replay(towers: dict[str, CompactEncoder]) -> None:
    first = towers["captured"](*pack(FULL["two"])).pooler_output
    kept = first.clone()
    towers["captured"](*pack(FULL["two"]))
    assert torch.equal(first, kept)


@torch.no_grad()
def test_packs_leave_nothing_behind_in_their_bucket(towers: dict[str, CompactEncoder], served: list[bool]) -> None:
    inputs = [pack(FULL[name]) for name in ("one image", "ragged", "two", "large", "ragged", "one image")]
    backwards = answers(towers["captured"], inputs[::-1])[::-1]
    assert all(map(torch.equal, answers(towers["captured"], inputs), backwards))
    assert all(served)


@torch.no_grad()
def test_replays_from_several_threads_and_streams(towers: dict[str, CompactEncoder], served: list[bool]) -> None:
    inputs = [pack(grids) for grids in [*FULL.values()] * 4]
    expected = answers(towers["captured"], inputs)
    assert all(map(torch.equal, in_threads(towers["captured"], inputs), expected))
    assert served == [True] * 2 * len(inputs)


def test_what_was_captured_is_told(towers: dict[str, CompactEncoder]) -> None:
    graphs = towers["captured"].graphs
    assert graphs is not None
    assert {bucket.tokens for bucket in graphs.buckets} == {SMALL, LARGE}
    assert graphs.left_out == []
    assert all(bucket.work_items and bucket.replay_ms > 0 for bucket in graphs.buckets)
    assert 0 < graphs.bytes <= MOST_BYTES
    assert graphs.launch_ms > 0


def test_graphs_that_do_not_fit_are_left_out_and_told(towers: dict[str, CompactEncoder]) -> None:
    """The small one alone needs less than both of them together."""
    both = towers["captured"].graphs
    assert both is not None
    tower = on_gpu(towers["exact"], HALVES[0])
    graphs = tower.capture_graphs(token_budgets=(SMALL, LARGE), max_bytes=both.bytes - (1 << 20))
    assert [bucket.tokens for bucket in graphs.buckets] == [SMALL]
    assert [tokens for tokens, _ in graphs.left_out] == [LARGE]
    assert graphs.bytes < both.bytes
