"""``infoprune evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from infoprune_rt.cli.options import (
    AnnotationsOption,
    DataOption,
    ImagesOption,
    JsonOption,
    ModelArgument,
    Normalisation,
    OnCorrupt,
    OnCorruptOption,
)
from infoprune_rt.cli.output import console, print_json, say


def evaluate(
    model: ModelArgument,
    data: DataOption,
    images: ImagesOption,
    annotations: AnnotationsOption = None,
    mode: Annotated[Normalisation, typer.Option(help="Normalisation of answers.")] = Normalisation.official,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many questions.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions at a time.")] = 64,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens that an answer may have.")] = 16,
    on_corrupt: OnCorruptOption = OnCorrupt.refuse,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write every answer here as it is given (JSON lines: question, answers, score). After an "
            "interruption the same command resumes; of a finished file it prints the scores."
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Answer questions with a dense or compact model and score them by task family."""
    from infoprune_rt.evaluation.formats import read_datasets
    from infoprune_rt.evaluation.run import evaluate_checkpoint
    from infoprune_rt.hardware import auto_device

    result = evaluate_checkpoint(
        model,
        read_datasets(data, images, annotations)[:limit],
        device=auto_device(),
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        mode=mode.value,
        on_corrupt=on_corrupt.value,
        out=out,
        data_names=[path.name for path in data],
    )
    if as_json:
        print_json(result)
        return
    table = Table(title="accuracy in %")
    table.add_column("family")
    table.add_column("accuracy", justify="right")
    for family in ("vqa", "text", "relations", "overall"):
        if family in result:
            table.add_row(family, f"{result[family]:.2f}")
    console.print(table)
    say(f"{result['questions']} questions, {result['mode']} normalisation of answers")
    if result.get("resumed"):
        say(f"{result['resumed']} of them were answered by an earlier run")
    for skipped in result["skipped_images"]:
        say(f"skipped {skipped['image']}: {skipped['why']}")
    if result["skipped"]:
        say(f"{result['skipped']} questions are not counted: their pictures were skipped")
    if out is not None:
        say(f"every answer is in {out}")
