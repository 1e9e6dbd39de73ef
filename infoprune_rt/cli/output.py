"""What commands print: results on standard output, everything on the way on standard error."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import typer
from rich.console import Console

from infoprune_rt.progress import progress_bars

console = Console()


def print_json(data: dict[str, Any]) -> None:
    """One JSON object; NaN, which JSON has not, is a bug of ours."""
    typer.echo(json.dumps(data, indent=1, allow_nan=False))


def say(text: str) -> None:
    """One line as it is: paths are neither wrapped nor read as markup."""
    console.print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def block_progress(title: str) -> Iterator[Callable[[int, int], None]]:
    """A bar as the callback ``progress(done, total)`` that the library calls."""
    with progress_bars() as bars:
        task = bars.add_task(title, total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)
