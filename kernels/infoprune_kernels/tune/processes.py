"""Processes beside this one: some that compile tiles ahead, one that measures and may fall without harm."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import KernelInterface

from infoprune_kernels.tune.measure import Dropped, Message, Say, Task, Timed, Trying
from infoprune_kernels.tune.problem import Choice, Problem

# Seconds without a word after which a process hangs: of one compilation, or of one problem's checks or times.
PATIENCE = 60.0

Job = tuple[Problem, Choice]
Child = Callable[[Sequence[Task], Say], None]


def _context() -> Any:
    """Children are forked off a process that has imported all this and never touched the device."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def jobs(tasks: Sequence[Task]) -> list[Job]:
    """What has to be compiled, each once: token counts share their kernels."""
    found = {(task.problem.compiled_alike(), choice) for task in tasks for choice in task.choices if choice.tile}
    return sorted(found, key=str)


def compile_ahead(work: Sequence[Job], arch: int, patience: float = PATIENCE) -> int:
    """Fill Triton's cache on disk by all processors, and return how many are compiled.

    What fails here is not told: it is missing in the cache, and fails again where it is to run.
    """
    compiled = 0
    with _context().Pool(len(os.sched_getaffinity(0)), _only_compile, (arch,)) as pool:
        results = pool.imap_unordered(_compile, work)
        try:
            for _ in work:
                compiled += results.next(patience)
        except multiprocessing.TimeoutError:
            pass  # the last ones hang, or took their process with them
    return compiled


class _Chip:
    """In the place of Triton's driver, which asks a device what to compile for."""

    def __init__(self, arch: int) -> None:
        self.arch = arch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.arch, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


def _only_compile(arch: int) -> None:
    """From here on this process compiles a kernel where another would launch it: the same call, the same cache."""
    triton.runtime.driver.set_active(_Chip(arch))
    KernelInterface.__getitem__ = lambda kernel, grid: (
        lambda *args, **options: kernel.warmup(*args, grid=grid, **options)
    )


def _compile(job: Job) -> bool:
    problem, choice = job
    try:
        problem.prepare(choice, problem.inputs("meta", torch.bfloat16))()
    except Exception:
        return False
    return True


@dataclass(frozen=True)
class _Ended:
    """How a process ended that did not finish."""

    reason: str


def supervised(
    tasks: Sequence[Task], child: Child, say: Callable[[Dropped | Timed], None], patience: float = PATIENCE
) -> list[Timed]:
    """Have a process of its own measure; where it falls or hangs, another one goes on without what it was trying.

    Args:
        tasks: what to measure.
        child: measures tasks and says what it does; importable.
        say: is told what was timed and what was dropped.
        patience: seconds without a word after which a process is ended.

    Returns:
        Times of those choices that were wrong for no problem.

    Raises:
        ValueError: the process fell before it tried anything.
    """
    left, timed, wrong = list(tasks), [], set()
    while left:
        trying: Choice | None = None
        for message in _messages(child, left, patience):
            if isinstance(message, Trying):
                trying = message.choice
                continue
            if isinstance(message, _Ended):
                if trying is None:
                    raise ValueError(f"the process that measures {message.reason} before it ran a kernel")
                message = Dropped(left[0].problem, trying, message.reason, wrong=True)
            say(message)
            if isinstance(message, Dropped) and message.choice is not None:
                wrong |= {message.choice} if message.wrong else set()
                continue
            left.pop(0)
            if isinstance(message, Timed):
                timed.append(message)
        left = [replace(task, choices=tuple(c for c in task.choices if c not in wrong)) for task in left]
    return [
        replace(found, microseconds={c: time for c, time in found.microseconds.items() if c not in wrong})
        for found in timed
    ]


def _messages(child: Child, tasks: Sequence[Task], patience: float) -> Iterator[Message | _Ended]:
    """What a process says until it is through, or how it ended before."""
    receiver, sender = multiprocessing.Pipe(duplex=False)
    process = _context().Process(target=_run, args=(child, tasks, sender), daemon=True)
    process.start()
    sender.close()
    try:
        while receiver.poll(patience):
            message = receiver.recv()
            if message is None:
                return
            yield message
            if isinstance(message, _Ended):
                return
        yield _Ended(f"said nothing for {patience:.0f} s")
    except EOFError:
        process.join()
        yield _Ended(f"ended with exit code {process.exitcode}")
    finally:
        process.kill()
        process.join()


def _run(child: Child, tasks: Sequence[Task], sender: Connection) -> None:
    try:
        child(tasks, sender.send)
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        sender.send(_Ended(f"ended by {type(error).__name__}: {lines[0]}"))
    else:
        sender.send(None)
