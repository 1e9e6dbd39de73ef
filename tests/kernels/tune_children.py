"""Processes that measure badly: what a kernel can do to the process that runs it."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence

from infoprune_kernels.tune.measure import Dropped, Say, Task, Timed, Trying


def fallible(tasks: Sequence[Task], say: Say) -> None:
    """One warp kills it, two hang, three raise; five are wrong with more than one token, six do not run."""
    for task in tasks:
        times = {}
        for choice in task.choices:
            say(Trying(choice))
            warps = choice.some_tile.num_warps
            if warps == 1:
                os._exit(7)
            if warps == 2:
                time.sleep(600)
            if warps == 3:
                raise RuntimeError("an illegal memory access\nand more")
            if warps == 5 and task.problem.tokens > 1:
                say(Dropped(task.problem, choice, "is wrong", wrong=True))
            elif warps == 6:
                say(Dropped(task.problem, choice, "does not run"))
            else:
                times[choice] = float(task.problem.tokens)
        say(Timed(task.problem, times))


def short_lived(tasks: Sequence[Task], say: Say) -> None:
    """Falls in the inputs of problems of an even number of tokens, and from five tokens on at once."""
    for task in tasks:
        if task.problem.tokens % 2 == 0 or task.problem.tokens >= 5:
            os._exit(7)
        fallible([task], say)


def unfit(tasks: Sequence[Task], say: Say) -> None:
    """Falls before it tries anything."""
    raise RuntimeError("no device")


def small(tasks: Sequence[Task], say: Say) -> None:
    """Has memory for few tokens."""
    for task in tasks:
        if task.problem.tokens > 1:
            say(Dropped(task.problem, None, "does not fit in the device's memory"))
        else:
            fallible([task], say)
