"""``infoprune inspect``."""

from __future__ import annotations

from typing import Annotated

import typer

from infoprune_rt.cli.options import PATCHES, JsonOption, ModelArgument
from infoprune_rt.cli.output import console, print_json


def inspect(
    model: ModelArgument,
    patches: Annotated[int, typer.Option(min=1, help="Patches of the picture whose FLOPs are counted.")] = PATCHES,
    as_json: JsonOption = False,
) -> None:
    """Show every block's heads, FFN form, parameters, bytes and FLOPs; works on dense and compact models."""
    from infoprune_rt.inspection import inspect_model, inspection_table

    found = inspect_model(model, patches)
    if as_json:
        print_json(found.to_dict())
    else:
        console.print(inspection_table(found))
