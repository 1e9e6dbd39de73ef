"""``infoprune``: the command line. Each command reads its arguments, calls the library, and shows the result."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NoReturn

import typer
from rich.console import Console
from rich.text import Text
from transformers.utils import logging

from infoprune_rt.cli.bench import bench
from infoprune_rt.cli.compress import compress
from infoprune_rt.cli.demo import demo
from infoprune_rt.cli.doctor import doctor
from infoprune_rt.cli.evaluate import evaluate
from infoprune_rt.cli.inspect import inspect
from infoprune_rt.cli.learn_heads import learn_heads
from infoprune_rt.errors import InfopruneError

__all__ = ["app", "main"]

app = typer.Typer(
    help="Prune the vision tower of a VLM by information theory, and run what is left.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
for _command in (demo, learn_heads, compress, inspect, evaluate, doctor):
    app.command(_command.__name__.replace("_", "-"))(_command)
app.add_typer(bench, name="bench")


def main(args: Sequence[str] | None = None) -> None:
    """Entry point; always ends in SystemExit. A user's mistake is one sentence on standard error and status 2.

    args: the words after the program's name; None takes them from the command line.
    """
    if "TRANSFORMERS_VERBOSITY" not in os.environ:
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    try:
        app(args)
    except InfopruneError as error:
        _fail(str(error))
    except OSError as error:  # a disk or a permission, wherever it struck
        what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or str(error)
        _fail(f"{what}; free some space, mend the permissions or choose another place")


def _fail(sentence: str) -> NoReturn:
    told = Text.assemble(("infoprune:", "bold red"), " ", " ".join(sentence.split()))
    Console(stderr=True).print(told, soft_wrap=True)
    raise SystemExit(2) from None
