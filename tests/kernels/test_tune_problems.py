"""What tuning checks before it times anything: its problems on the kernels, interpreted, against their definitions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from infoprune_kernels.configs import Tile
from infoprune_kernels.tune.__main__ import main
from infoprune_kernels.tune.attention_problem import Attention
from infoprune_kernels.tune.linear_problems import DenseFirst, Linear, LowRank, QkvRope
from infoprune_kernels.tune.measure import Dropped, Message, Task, Trying, sound_choices
from infoprune_kernels.tune.problem import Choice, Problem
from torch import Tensor
from triton.runtime.jit import KernelInterface

LINEAR = Tile(32, 32, 4, 2, block_k=32)
CASES = [
    (Attention(100, 3, 80, (70, 30)), [Choice("attention", Tile(32, 32, 4, 2))]),
    (Attention(70, 2, 72, (70,)), [Choice("attention_hopper", Tile(64, 32, 4, 2))]),
    (QkvRope(70, 96, 3, 20), [Choice("norm_qkv_rope", LINEAR)]),
    (Linear(70, 40, 50), [Choice("linear_residual", LINEAR)]),
    (Linear(70, 40, 50, bare=True), [Choice("linear_residual", LINEAR)]),
    (DenseFirst(70, 40, 50), [Choice("ffn_dense", LINEAR)]),
    (LowRank(70, 96, 48, (LINEAR, LINEAR)), [Choice("ffn_lowrank", None), Choice("ffn_lowrank", LINEAR)]),
]


@pytest.fixture(autouse=True)
def _as_tuned() -> None:
    """Tuning poisons fresh memory itself."""
    torch.use_deterministic_algorithms(False)


def checked(problem: Problem, choices: list[Choice]) -> tuple[list[Choice], list[Message]]:
    said: list[Message] = []
    return sound_choices(Task(problem, tuple(choices)), said.append, "cpu", torch.float16), said


@pytest.mark.parametrize(("problem", "choices"), CASES, ids=lambda case: str(case) if isinstance(case, Problem) else "")
def test_sound_kernels_are_sound(problem: Problem, choices: list[Choice]) -> None:
    assert checked(problem, choices) == (choices, [Trying(choice) for choice in choices])


@dataclass(frozen=True)
class Spoilt(Linear):
    """A product whose kernel does one thing badly; what it does badly is told by the tile's warps."""

    def prepare(self, choice: Choice, inputs: tuple[Tensor, ...]) -> Callable[[], tuple[Tensor, ...]]:
        run = super().prepare(Choice(choice.kernel, LINEAR), inputs)
        deeds: dict[int, Callable[[Tensor], Tensor]] = {
            1: lambda out: out,
            2: lambda out: out.index_fill(0, torch.tensor([69]), 0.0),
            3: lambda out: out + 0.05,
            4: torch.empty_like,  # leaves everything unwritten: what was there before must not pass
        }
        return lambda: tuple(deeds[choice.some_tile.num_warps](out) for out in run())


def test_what_is_wrong_or_does_not_run_is_dropped_with_its_reason() -> None:
    choices = [Choice("linear_residual", Tile(32, 32, warps, 2, 32)) for warps in range(1, 6)]
    sound, said = checked(Spoilt(70, 40, 50), choices)
    assert sound == choices[:1]
    dropped = {message.choice: message for message in said if isinstance(message, Dropped)}
    for choice in choices[1:4]:
        assert dropped[choice].wrong
        assert "is wrong: errors of" in dropped[choice].reason
    assert not dropped[choices[4]].wrong
    assert dropped[choices[4]].reason == "does not run: KeyError: 5"
    assert [message for message in said if isinstance(message, Trying)] == [Trying(choice) for choice in choices]


class Loaded(KernelInterface[Any]):
    """A kernel that Triton has loaded, as it tells of it."""

    def __init__(self, told: SimpleNamespace) -> None:
        self.told = told

    def run(self, *args: Any, grid: Any, warmup: bool, **options: Any) -> SimpleNamespace:
        return self.told


@dataclass(frozen=True)
class Spilling(Linear):
    """A product whose kernel spills with four warps; of one with eight, Triton does not tell."""

    def prepare(self, choice: Choice, inputs: tuple[Tensor, ...]) -> Callable[[], tuple[Tensor, ...]]:
        told = {1: SimpleNamespace(n_spills=0), 4: SimpleNamespace(n_spills=12), 8: SimpleNamespace()}
        run = super().prepare(Choice(choice.kernel, LINEAR), inputs)

        def launch() -> tuple[Tensor, ...]:
            Loaded(told[choice.some_tile.num_warps])[(1,)](3)
            return run()

        return launch


def test_what_spills_is_not_timed_but_not_wrong() -> None:
    choices = [Choice("linear_residual", Tile(32, 32, warps, 2, 32)) for warps in (1, 4, 8)]
    problem = Spilling(70, 40, 50)
    sound, said = checked(problem, choices)
    assert sound == [choices[0], choices[2]]
    assert [message for message in said if isinstance(message, Dropped)] == [
        Dropped(problem, choices[1], "spills registers")
    ]


def test_interpreted_kernels_are_not_timed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 1
    assert "interpreted kernels have no times; unset it" in capsys.readouterr().err
