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

SMALL, LARGE = 512, 1664
MOST_BYTES = 1 << 30
Pack = tuple[Tensor, Tensor]


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


def pack(*grids: tuple[int, int]) -> Pack:
    grid = torch.tensor([(1, height, width) for height, width in grids])
    return torch.randn(int(grid.prod(1).sum()), 1176, device=DEVICE), grid


PACKS = {
    "one image": [(34, 46)],
    "full": [(32, 52)],
    "tiny": [(2, 2)],
    "ragged": [(10, 14), (2, 2), (16, 16), (20, 12)],
    "many": [(2, 2)] * 60,
    "above the largest bucket": [(40, 44)],
}


@pytest.mark.parametrize("grids", PACKS.values(), ids=PACKS.keys())
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_replay_answers_as_an_eager_pass(
    towers: dict[str, CompactEncoder], grids: list[tuple[int, int]], mode: type[torch.no_grad]
) -> None:
    inputs = pack(*grids)
    with mode():
        made = {name: tower(*inputs).pooler_output for name, tower in towers.items()}
    assert_close((made["captured"],), (made["plain"],), (made["exact"],))
    assert_close((made["eager"],), (made["plain"],), (made["exact"],))


@torch.no_grad()
def test_an_answer_is_not_overwritten_by_the_next_replay(towers: dict[str, CompactEncoder]) -> None:
    first = towers["captured"](*pack((20, 20))).pooler_output
    kept = first.clone()
    towers["captured"](*pack((20, 20)))
    assert torch.equal(first, kept)


@torch.no_grad()
def test_replays_of_different_packs_in_one_bucket_leave_nothing_behind(towers: dict[str, CompactEncoder]) -> None:
    inputs = [pack(*grids) for grids in ([(22, 22)], [(2, 2)], [(10, 14), (12, 12)], [(2, 2)], [(22, 22)])]
    alone = [answers(towers["captured"], [each])[0] for each in reversed(inputs)]
    again = answers(towers["captured"], inputs)
    assert all(map(torch.equal, again, reversed(alone)))


@torch.no_grad()
def test_replays_from_several_threads_and_streams(towers: dict[str, CompactEncoder]) -> None:
    inputs = [pack(*grids) for grids in ([(16, 16)], [(34, 46)], [(2, 2), (4, 6)], [(30, 40)]) * 4]
    expected = answers(towers["captured"], inputs)
    assert all(map(torch.equal, in_threads(towers["captured"], inputs), expected))


def test_what_was_captured_is_told(towers: dict[str, CompactEncoder]) -> None:
    graphs = towers["captured"].graphs
    tokens = [bucket.tokens for bucket in graphs.buckets]
    assert tokens == sorted(tokens)
    assert set(tokens) | {left[0] for left in graphs.left_out} >= {SMALL, LARGE}
    assert tokens
    assert all(bucket.work_items > 0 and bucket.replay_ms > 0 for bucket in graphs.buckets)
    assert 0 < graphs.bytes <= MOST_BYTES
    assert graphs.launch_ms > 0
