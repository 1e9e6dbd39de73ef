"""Times tiles on the CUDA device at hand and writes its table: ``python -m infoprune_kernels.tune``."""

from __future__ import annotations

import argparse
import math
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import torch
import triton

from infoprune_kernels.configs import FOLDER, ConfigTable, as_json, pick, tables
from infoprune_kernels.tune.candidates import Limits
from infoprune_kernels.tune.measure import Dropped, Task, Timed, measure
from infoprune_kernels.tune.plan import first_tasks, lowrank_tasks, pressing, with_rules
from infoprune_kernels.tune.processes import Supervisor, compile_ahead, jobs
from infoprune_kernels.tune.results import (
    Device,
    check_writable,
    clocks_and_driver,
    device_at_hand,
    summary,
    timing_rows,
    write_json,
)
from infoprune_kernels.tune.rules import MARGIN

COMPILING = 0.6  # the share of its time after which no further tile is compiled ahead

DESCRIPTION = """\
Times the kernels' tiles on the CUDA device at hand, in bfloat16 at the sizes of Qwen2-VL-7B's vision tower, and writes
the table that calls on this device are served by from then on. Runs unattended, two minutes or so on a machine with
16 processor cores; compiling takes half of that. A tile that computes wrongly, or does not run, is left out and named.
"""
EPILOG = f"""\
The table is <device>.json, e.g. nvidia_h200.json, in
{FOLDER};
one that is there is replaced. Without it, tables of resource arithmetic serve. Nothing is ever tuned inside a call.
"""


class _Progress:
    """Lines with the seconds since the beginning; keeps what was dropped."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.dropped: list[Dropped] = []

    def say(self, line: str) -> None:
        print(f"{time.monotonic() - self.began:6.1f} s  {line}", flush=True)

    def tell(self, message: Dropped | Timed) -> None:
        if isinstance(message, Dropped):
            self.dropped.append(message)
            self.say(f"dropped: {message.choice or 'all'} on {message.problem}: {message.reason}")
        elif message.microseconds:
            best = min(message.microseconds, key=message.microseconds.__getitem__)
            count = len(message.microseconds)
            self.say(f"{message.problem}: {message.microseconds[best]:.1f} µs by {best}, the fastest of {count}")


def tune(device: Device, path: Path, timings: Path | None, command: str, seconds: float = math.inf) -> None:
    """Compile, check, time, decide, write.

    What was timed when the time is up decides; a kernel of which nothing was keeps its rules of arithmetic.

    Args:
        device: the current one.
        path: the table's file.
        timings: a file for the times that it was decided by.
        command: as it was called.
        seconds: after which nothing is measured any more.

    Raises:
        ValueError: nothing could be measured.
    """
    progress = _Progress()
    limits = Limits(device.arch, device.shared_bytes)
    table = replace(
        pick([t for t in tables() if not t.measured], device.name, device.shared_bytes),
        name=device.slug,
        devices=(device.name,),
        arch=device.arch,
        shared_bytes=device.shared_bytes,
        measured=True,
    )
    tasks = sorted([*first_tasks(limits, table), *lowrank_tasks(limits, table)], key=_unhurried)
    work = jobs(tasks)
    progress.say(f"{device.name}: compiling {len(work)} tiles")
    compiled = compile_ahead(work, device.arch, progress.began + COMPILING * seconds)
    progress.say(f"{compiled} of them compiled")
    timed = _measured(table, limits, Supervisor(measure, progress.tell, until=progress.began + seconds))
    if not any(found.microseconds for found in timed):
        last = f": {progress.dropped[-1].reason}" if progress.dropped else ""
        raise ValueError(f"no kernel ran on {device.name}, no table was written{last}")
    known = {str(found.problem) for found in timed if found.microseconds}
    table = with_rules(table, timed)

    read = clocks_and_driver(device)
    versions = {"torch": torch.__version__, "triton": triton.__version__, "driver": read.pop("driver_version", "?")}
    provenance = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command,
        "versions": versions,
        "clocks": read,
        "margin": MARGIN,
        "not_measured": [str(task.problem) for task in tasks if str(task.problem) not in known],
    }
    write_json(path, as_json(replace(table, provenance=provenance)))
    if timings:
        write_json(timings, {"device": device.name, **provenance, **timing_rows(timed, progress.dropped)})
    print(summary(table, timed, device))
    progress.say(f"wrote {path}" + (f" and {timings}" if timings else ""))
    print(f"{len(progress.dropped)} dropped, {sum(each.wrong for each in progress.dropped)} of them wrong")


def _unhurried(task: Task) -> bool:
    return not pressing(task.problem)


def _measured(table: ConfigTable, limits: Limits, supervisor: Supervisor) -> list[Timed]:
    """What presses first; the low-rank FFN each time after the products that it is compared with."""
    timed: list[Timed] = []
    for unhurried in (False, True):
        for make in (first_tasks, lowrank_tasks):
            tasks = make(limits, with_rules(table, timed))
            timed = supervisor.measure([task for task in tasks if _unhurried(task) is unhurried])
    return timed


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 where it refuses, in one sentence."""
    given = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        "python -m infoprune_kernels.tune",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--seconds", type=float, default=math.inf, metavar="N", help="stop measuring then, and decide by what was timed"
    )
    parser.add_argument("--timings", type=Path, metavar="FILE", help="also write every time that was taken, as JSON")
    options = parser.parse_args(given)
    try:
        if not options.seconds > 0:
            raise ValueError(f"--seconds must be above 0, not {options.seconds:g}")
        device = device_at_hand()
        path = FOLDER / f"{device.slug}.json"
        for place in filter(None, (path, options.timings)):
            check_writable(place)
        command = shlex.join(["python", "-m", "infoprune_kernels.tune", *given])
        tune(device, path, options.timings, command, options.seconds)
    except ValueError as error:
        print(f"tune: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
