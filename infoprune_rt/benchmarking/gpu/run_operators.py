"""Measures the operators, question by question, until all are answered or the time is up; one result file."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infoprune_rt.benchmarking.gpu.attention_peers import absent_peers
from infoprune_rt.benchmarking.gpu.budget import Budget, Pace
from infoprune_rt.benchmarking.gpu.device import chip_of
from infoprune_rt.benchmarking.gpu.goals import operator_goals
from infoprune_rt.benchmarking.gpu.measuring import Contender, Findings, free_memory, largest_error, rows_of, with_rates
from infoprune_rt.benchmarking.gpu.operators import OURS, Args, Question
from infoprune_rt.benchmarking.gpu.results import ResultFile
from infoprune_rt.benchmarking.gpu.timing import replayed

FEWEST_INPUTS, MOST_INPUTS = 2, 32
FIRST_SECONDS = 3.0  # what a question is expected to take before one was asked: most of it compiles


def bench_operators(
    path: Path, device: torch.device, seconds: float, questions: Iterable[Question], rounds: int = 30
) -> dict[str, Any]:
    """Measure and write ``path`` (JSON), after every question anew; returns what is in the file.

    What a contender raises is recorded, and the rest goes on; so is what there was no time for.
    """
    budget, found, file = Budget(seconds), Findings(), ResultFile(path, device)
    asked = list(questions)
    for name, module in absent_peers().items():
        found.leave_out(name, f"{module} is not installed")
    for question in asked:
        found.leave_out(str(question), f"{seconds:.0f} s were over before it")
    pace = Pace(budget, FIRST_SECONDS)
    result = file.write(found, [])
    for question in asked:
        if not pace.allows():
            continue
        with pace.timed(), torch.inference_mode():
            found.take_in(str(question))
            found.rows += _rows(question, device, rounds, found)
            free_memory(device)
        result = file.write(found, operator_goals(found.rows))
    return result


def _rows(question: Question, device: torch.device, rounds: int, found: Findings) -> list[dict[str, Any]]:
    first = question.args(device)
    inputs = [first, *(question.args(device) for _ in range(_inputs(first, device) - 1))]
    exact = {i: question.exact(inputs[i]) for i in (0, len(inputs) - 1)}
    contenders = {}
    for name, build in question.contenders.items():
        with found.recorded(question.case, name, name == OURS):
            runs = [build(args) for args in inputs]
            error = largest_error(runs, exact)
            contenders[name] = Contender(replayed(runs, device), error, name == OURS)
    chip = chip_of(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    work = question.work()
    return [with_rates(row, work, chip) for row in rows_of(question.case, contenders, device, rounds)]


def _inputs(args: Args, device: torch.device) -> int:
    """More than fit in the L2 cache: a tower's weights are not there either when their turn comes."""
    if device.type != "cuda":
        return FEWEST_INPUTS
    taken = sum(arg.nbytes for arg in args if isinstance(arg, Tensor))
    enough = math.ceil(2 * torch.cuda.get_device_properties(device).L2_cache_size / taken)
    return min(max(enough, FEWEST_INPUTS), MOST_INPUTS)
