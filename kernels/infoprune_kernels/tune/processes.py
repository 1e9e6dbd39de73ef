"""Processes beside this one: some that compile tiles ahead, one that measures and may fall without harm."""

from __future__ import annotations

import math
import multiprocessing
import os
import time
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

# Seconds without a word after which a process hangs: while it begins, or of one compilation; and once it measures.
SLOW, PATIENCE = 30.0, 15.0

Job = tuple[Problem, Choice]
Child = Callable[[Sequence[Task], Say], None]


def _context() -> Any:
    """Children are forked off a process that has imported all this and never touched the device."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    return context


def jobs(tasks: Sequence[Task]) -> list[Job]:
    """What has to be compiled, each once, in the tasks' order: token counts share their kernels."""
    found = ((task.problem.compiled_alike(), choice) for task in tasks for choice in task.choices if choice.tile)
    return list(dict.fromkeys(found))


def compile_ahead(work: Sequence[Job], arch: int, until: float = math.inf) -> int:
    """Fill Triton's cache on disk by all processors until a time of the monotonic clock; returns how many are compiled.

    What fails here is not told: it is missing in the cache, and fails again where it is to run.
    """
    compiled = 0
    with _context().Pool(len(os.sched_getaffinity(0)), _only_compile, (arch,)) as pool:
        results = pool.imap_unordered(_compile, work)
        try:
            for _ in work:
                compiled += results.next(max(0.0, min(SLOW, until - time.monotonic())))
        except multiprocessing.TimeoutError:
            pass  # the time is up; or the last ones hang, or took their process with them
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


class Supervisor:
    """Has a process of its own measure; where it falls or hangs, another one goes on without what it was trying.

    Args:
        child: measures tasks and says what it does; importable.
        say: is told what was timed and what was dropped.
        patience: seconds without a word after which a process that has begun is ended.
        until: the time of the monotonic clock when measuring ends, in the midst of a task if need be.
    """

    def __init__(
        self,
        child: Child,
        say: Callable[[Dropped | Timed], None],
        patience: float = PATIENCE,
        until: float = math.inf,
    ) -> None:
        self._child, self._say, self._patience, self.until = child, say, patience, until
        self._timed: list[Timed] = []
        self._wrong: set[Choice] = set()

    def measure(self, tasks: Sequence[Task]) -> list[Timed]:
        """Measure these, too; returns the times so far of those choices that were wrong for no problem."""
        left = list(tasks)
        while left and time.monotonic() < self.until:
            left = [replace(task, choices=tuple(c for c in task.choices if c not in self._wrong)) for task in left]
            if not self._one_process(left):
                break
        return [
            replace(found, microseconds={c: t for c, t in found.microseconds.items() if c not in self._wrong})
            for found in self._timed
        ]

    def _one_process(self, left: list[Task]) -> bool:
        """Takes what is done away from the tasks; whether the process said anything before it ended."""
        trying: Choice | None = None
        spoke = False
        for message in self._messages(left):
            if isinstance(message, Trying):
                trying, spoke = message.choice, True
                continue
            if isinstance(message, _Ended):
                if not left:
                    break  # all was said
                reason = message.reason + ("" if trying else " before it tried a kernel")
                message = Dropped(left[0].problem, trying, reason, wrong=trying is not None)
            else:
                spoke = True
            self._say(message)
            if isinstance(message, Dropped) and message.choice is not None:
                self._wrong |= {message.choice} if message.wrong else set()
                continue
            if isinstance(message, Timed):
                self._timed.append(message)
            left.pop(0)
            trying = None  # what falls from here on, falls in the next problem's inputs
        return spoke

    def _messages(self, tasks: Sequence[Task]) -> Iterator[Message | _Ended]:
        """What a process says until it is through or the time is up, or how it ended before."""
        receiver, sender = multiprocessing.Pipe(duplex=False)
        process = _context().Process(target=_run, args=(self._child, list(tasks), sender), daemon=True)
        process.start()
        sender.close()
        patience = max(SLOW, self._patience)
        try:
            while receiver.poll(max(0.0, min(patience, self.until - time.monotonic()))):
                message = receiver.recv()
                if message is None:
                    return
                yield message
                if isinstance(message, _Ended):
                    return
                patience = self._patience
            if time.monotonic() < self.until:
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
