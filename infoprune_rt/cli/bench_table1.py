"""``infoprune bench table1``."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from infoprune_rt.cli.options import AnnotationsOption
from infoprune_rt.cli.output import console, say


class Preset(StrEnum):
    """Whose model."""

    tiny = "tiny"
    two_b = "2b"
    seven_b = "7b"


class YopoPreset(StrEnum):
    """How much YOPO prunes."""

    released = "qwen2_vl_released"
    nominal_25 = "nominal_25"
    nominal_12 = "nominal_12"


def table1(
    preset: Annotated[
        Preset, typer.Option(help="The shipped tiny VLM, or Qwen2-VL's sizes with random weights (speed only).")
    ] = Preset.tiny,
    model: Annotated[
        Path | None, typer.Option(help="A dense Qwen2-VL checkpoint instead of a preset; give --compact with it.")
    ] = None,
    compact: Annotated[Path | None, typer.Option(help="What `infoprune compress` made of it.")] = None,
    workload: Annotated[
        list[str] | None,
        typer.Option(help="coco, textvqa, highres, mixed; repeatable. Default: coco. The tiny VLM has its own scenes."),
    ] = None,
    yopo: Annotated[YopoPreset, typer.Option(help="YOPO's setting.")] = YopoPreset.released,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "cpu",
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens that each generation makes.")] = 8,
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds, in which all rows take turns.")] = 3,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            help="With --model: questions in official files. The first are scored, others choose YOPO's heads."
        ),
    ] = None,
    images: Annotated[Path | None, typer.Option(help="The folder with the pictures that the questions name.")] = None,
    annotations: AnnotationsOption = None,
    limit: Annotated[int, typer.Option(min=1, help="Only the first so many questions.")] = 400,
    out: Annotated[
        Path, typer.Option("--json", help="The result file; a Markdown table and an HTML page lie beside it.")
    ] = Path("runs/table1.json"),
) -> None:
    """Table 1: dense, YOPO and InfoPrune, masked and really skipping, in one run on the same inputs.

    Every row is checked against a wider dtype, and the products of each structure against a counted trace; a row that
    fails gets no speed-up. Eager attention of the dense tower is left out where it does not fit into memory.
    Broken off, the same command goes on after the last workload that was done. Exits with status 1 if a row is wrong.
    """
    from infoprune_rt.benchmarking.table1.building import Choice
    from infoprune_rt.benchmarking.table1.command import chosen_workloads, questions, result_file
    from infoprune_rt.benchmarking.table1.page import page
    from infoprune_rt.benchmarking.table1.run import Options, table1
    from infoprune_rt.benchmarking.table1.show import markdown, tables
    from infoprune_rt.benchmarking.targets import Target
    from infoprune_rt.files import write_text
    from infoprune_rt.hardware import named_device

    out = result_file(out)
    name = None if model is not None else preset.value
    choice = Choice(name, model, compact, yopo.value, named_device(device))
    options = Options(choice, chosen_workloads(name, workload), new_tokens, rounds)
    asked = questions(choice, data, images, annotations, limit)
    with console.status("") as status:
        result = table1(options, out, asked, lambda told: status.update(told))
    write_text(out.with_suffix(".md"), markdown(result))
    write_text(out.with_suffix(".html"), page(result))
    for table in tables(result):
        console.print(table)
    for goal in result["goals"]:
        say(str(Target(**{key: value for key, value in goal.items() if key != "met"})))
    say(f"written to {out}, and as {out.with_suffix('.md').name} and {out.with_suffix('.html').name}")
    raise typer.Exit(int(not result["sound"]))
