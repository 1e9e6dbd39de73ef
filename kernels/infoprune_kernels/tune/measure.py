"""In a process of its own, on the device: which tiles compute rightly, and how long they take."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from triton.runtime.jit import KernelInterface

from infoprune_kernels.tune.problem import Choice, Problem, Run

ROUNDS = 11
WARM_ROUNDS = 2
# A graph is long enough for the clock: this many FLOPs, or launches. Its inputs outgrow the L2 cache by this factor.
GRAPH_FLOPS = 80e9
MOST_LAUNCHES = 32
CACHES = 2


@dataclass(frozen=True)
class Task:
    """A problem and what is tried on it."""

    problem: Problem
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class Trying:
    """Said before a choice runs for the first time, and before it is timed: should it take the process with it."""

    choice: Choice


@dataclass(frozen=True)
class Dropped:
    """A choice that is not timed; without a choice, the whole problem. wrong: it is not to be trusted anywhere."""

    problem: Problem
    choice: Choice | None
    reason: str
    wrong: bool = False


@dataclass(frozen=True)
class Timed:
    """Microseconds per launch of all sound choices."""

    problem: Problem
    microseconds: dict[Choice, float]


Message = Trying | Dropped | Timed
Say = Callable[[Message], None]


def measure(tasks: Sequence[Task], say: Say) -> None:
    """Check and time the choices of each problem on the current CUDA device, in bfloat16."""
    for task in tasks:
        try:
            sound = sound_choices(task, say, "cuda", torch.bfloat16)
            say(Timed(task.problem, time_on_cuda(task.problem, sound, say) if sound else {}))
        except torch.OutOfMemoryError:
            say(Dropped(task.problem, None, "does not fit in the device's memory"))
        torch.cuda.empty_cache()  # what a graph's pool held serves no other graph


def sound_choices(task: Task, say: Say, device: str, dtype: torch.dtype) -> list[Choice]:
    """Those that run without spilling and whose errors are at most twice PyTorch's operators', beside one rounding."""
    problem = task.problem
    inputs = problem.inputs(device, dtype)
    exact = problem.definition(_cast(inputs, torch.float64))
    allowed = [
        2 * _distance(theirs, truth) + torch.finfo(dtype).eps * float(truth.abs().max())
        for theirs, truth in zip(problem.definition(inputs), exact, strict=True)
    ]
    sound = []
    for choice in task.choices:
        say(Trying(choice))
        try:
            with _poisoned(), _compiled() as kernels:
                made = problem.prepare(choice, inputs)()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            _check_device(device)
            say(Dropped(problem, choice, f"does not run: {_first_line(error)}"))
            continue
        distances = [_distance(mine, truth) for mine, truth in zip(made, exact, strict=True)]
        if not all(distance <= most for distance, most in zip(distances, allowed, strict=True)):
            told = f"is wrong: errors of {_numbers(distances)}, where {_numbers(allowed)} are allowed"
            say(Dropped(problem, choice, told, wrong=True))
        elif choice.tile and any(map(_spills, kernels)):  # two products have tiles that were chosen before
            say(Dropped(problem, choice, "spills registers"))
        else:
            sound.append(choice)
    return sound


def time_on_cuda(problem: Problem, choices: Sequence[Choice], say: Say) -> dict[Choice, float]:
    """Medians over replays of graphs, a graph of several launches per choice, the choices in turn."""
    inputs = [problem.inputs("cuda", torch.bfloat16)]
    size = sum(tensor.nbytes for tensor in inputs[0])
    cache = torch.cuda.get_device_properties().L2_cache_size
    while len(inputs) < min(MOST_LAUNCHES, max(2, CACHES * cache // size)):
        inputs.append(problem.inputs("cuda", torch.bfloat16))
    launches = max(len(inputs), min(MOST_LAUNCHES, int(GRAPH_FLOPS // problem.work().flops)))
    graphs = {}
    for choice in choices:
        say(Trying(choice))
        runs = [problem.prepare(choice, each) for each in inputs]
        graphs[choice] = _captured([runs[place % len(runs)] for place in range(launches)])
    times: dict[Choice, list[float]] = {choice: [] for choice in choices}
    for turn in range(WARM_ROUNDS + ROUNDS):
        first = turn % len(choices)
        for choice in (*choices[first:], *choices[:first]):
            times[choice].append(_replay(graphs[choice]))
    return {choice: 1e3 * statistics.median(found[WARM_ROUNDS:]) / launches for choice, found in times.items()}


def _captured(runs: Sequence[Run]) -> torch.cuda.CUDAGraph:
    """Captured on a stream of its own, and replayed once: what fails then does so before anything is timed."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()):
        graph.capture_begin()
        for run in runs:
            run()
        graph.capture_end()
    graph.replay()
    torch.cuda.synchronize()
    return graph


def _replay(graph: torch.cuda.CUDAGraph) -> float:
    """Milliseconds."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    graph.replay()
    end.record()
    end.synchronize()
    return float(start.elapsed_time(end))


def _check_device(device: str) -> None:
    """Raises what a kernel that failed on the device left behind: nothing runs any more then."""
    if device == "cuda":
        torch.cuda.synchronize()


@contextmanager
def _poisoned() -> Iterator[None]:
    """Fresh memory holds NaN, not what the choice before left there."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def _compiled() -> Iterator[list[Any]]:
    """Collects what Triton has compiled for the launches within."""
    found: list[Any] = []
    launcher = KernelInterface.__getitem__

    def collecting(kernel: Any, grid: Any) -> Callable[..., Any]:
        def launch(*args: Any, **options: Any) -> Any:
            made = launcher(kernel, grid)(*args, **options)
            found.append(made)
            return made

        return launch

    KernelInterface.__getitem__ = collecting
    try:
        yield found
    finally:
        KernelInterface.__getitem__ = launcher


def _spills(kernel: Any) -> bool:
    """Known once it was loaded; a version of Triton that does not tell is believed."""
    return bool(getattr(kernel, "n_spills", 0))


def _cast(inputs: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(tensor.to(dtype) for tensor in inputs)


def _distance(found: Tensor, truth: Tensor) -> float:
    return float((found.to(truth.dtype) - truth).abs().max())


def _numbers(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2g}" for value in values)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
