"""``infoprune bench ablations``."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from infoprune_rt.cli.output import console, say
from infoprune_rt.errors import InfopruneError

if TYPE_CHECKING:
    from infoprune_rt.benchmarking.ablations.subject import Data
    from infoprune_rt.evaluation.dataset import VQADataset

_SCENES, _QUICK_SCENES = 250, 40
_Files = tuple[list[Path] | None, Path | None, Path | None]  # questions, VQAv2's annotations, folder of pictures


def ablations(
    quick: Annotated[
        bool, typer.Option("--quick", help="Under 4 minutes on 2 cores: one seed, few steps, points and scenes.")
    ] = False,
    seeds: Annotated[int | None, typer.Option(min=1, help="Seeds of learning; default 3, with --quick 1.")] = None,
    scenes: Annotated[
        int | None,
        typer.Option(min=1, help=f"Test scenes of 8 questions; default {_SCENES}, with --quick {_QUICK_SCENES}."),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Your Qwen2-VL or LLaVA-1.5 (directory or hub id), not the shipped tiny VLM.")
    ] = None,
    data: Annotated[
        list[Path] | None, typer.Option(help="For --model: questions to learn on (VQAv2, TextVQA, GQA). Repeatable.")
    ] = None,
    annotations: Annotated[Path | None, typer.Option(help="VQAv2's answers to --data.")] = None,
    images: Annotated[Path | None, typer.Option(help="The folder with the pictures of --data.")] = None,
    test_data: Annotated[list[Path] | None, typer.Option(help="For --model: questions to test on. Repeatable.")] = None,
    test_annotations: Annotated[Path | None, typer.Option(help="VQAv2's answers to --test-data.")] = None,
    test_images: Annotated[Path | None, typer.Option(help="The folder with the pictures of --test-data.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="For --model: only so many test questions.")] = None,
    max_images: Annotated[
        int | None, typer.Option(min=1, help="Pictures of --data that fits see; default 300, with --quick 64.")
    ] = None,
    picture_batch: Annotated[
        int, typer.Option(min=1, help="Pictures calibrated at a time; fewer need less memory.")
    ] = 32,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions answered at a time.")] = 128,
    micro_batch: Annotated[
        int | None, typer.Option(min=1, help="Questions differentiated at a time, to save memory (see learn-heads).")
    ] = None,
    checkpoint_activations: Annotated[
        bool, typer.Option("--checkpoint-activations", help="Less memory, more time (see learn-heads).")
    ] = False,
    work: Annotated[
        Path | None,
        typer.Option(
            help="A directory of its own for what is measured and learnt on the way: the same command goes on there, "
            "and clears it when done. Default runs/ablations, with --quick runs/ablations-quick."
        ),
    ] = None,
    out: Annotated[Path, typer.Option("--json", help="The result file; its pictures lie beside it.")] = Path(
        "runs/ablations.json"
    ),
) -> None:
    """The paper's ablations: what each part of the method is worth, on the shipped tiny VLM or on your model.

    **heads** (Table 2): heads scored by the task loss, L_KS and L_eRank, apart and together, against random heads,
    weights' magnitude and Michel's gradient, at the same budget; 25, 50 and 70 % of all heads removed, with and
    without refitted output projections; means over seeds with their 95 % interval.

    **epsilon** (Table 4): accuracy against ε and k, for the paper's Taylor map, the best linear map and kept neurons.

    **gradients** (section 5.3): the gradient norm of every term, step by step, when eRank alone drives ζ.

    **question types**: which questions suffer while more and more FFNs become linear.

    **shift**: calibrated and learnt on one style of pictures, tested on another.

    About 40 minutes on 2 cores; an estimate is printed first. Every row is kept at once: an interrupted run goes on
    where it was. The same on a checkpoint and data of your own:

    `infoprune bench ablations --model Qwen/Qwen2-VL-7B-Instruct --data v2_OpenEnded_mscoco_train2014_questions.json
    --annotations v2_mscoco_train2014_annotations.json --images train2014 --test-data TextVQA_0.5.1_val.json
    --test-images train_images --limit 2000`
    """
    from infoprune_rt.benchmarking.ablations.handwriting_data import MODEL_NAME, handwriting_data
    from infoprune_rt.benchmarking.ablations.options import Options
    from infoprune_rt.benchmarking.ablations.run import run_ablations
    from infoprune_rt.benchmarking.ablations.subject import Subject
    from infoprune_rt.demo.tiny_vlm import SHIPPED
    from infoprune_rt.evaluation.weight_memory import require_weight_memory
    from infoprune_rt.hardware import auto_device
    from infoprune_rt.hub import resolve_model_dir
    from infoprune_rt.model_loading import load_dense_vlm

    given: dict[str, Any] = {"seeds": seeds, "calibration_pictures": max_images, "micro_batch": micro_batch}
    given |= {
        "picture_batch": picture_batch,
        "answer_batch": batch_size,
        "checkpoint_activations": checkpoint_activations,
    }
    base = Options().quick() if quick else Options()
    options = replace(base, **{name: value for name, value in given.items() if value is not None})
    place = work or Path("runs/ablations-quick" if quick else "runs/ablations")
    device = auto_device()
    learn, test = (data, annotations, images), (test_data, test_annotations, test_images)
    with tempfile.TemporaryDirectory(prefix="infoprune-ablations-") as folder:
        if model is None:
            _refuse_strays(limit, *learn, *test)
            found = handwriting_data(Path(folder), scenes or (_QUICK_SCENES if quick else _SCENES))
        else:
            found = _own_data(learn, test, limit, scenes)
            require_weight_memory(resolve_model_dir(model), device)
        vlm = load_dense_vlm(model or SHIPPED, device)
        result = run_ablations(Subject(model or MODEL_NAME, vlm, found, options, place), out, say)
    _show(result)
    say(f"written to {out}")


def _refuse_strays(*for_a_model: object) -> None:
    if any(value is not None for value in for_a_model):
        raise InfopruneError(
            "the tiny VLM is ablated on its own scenes; give --model as well to use --data, --test-data and --limit"
        )


def _own_data(learn: _Files, test: _Files, limit: int | None, scenes: int | None) -> Data:
    from infoprune_rt.benchmarking.ablations.subject import Data
    from infoprune_rt.evaluation.image_folder import require_images

    if scenes is not None:
        raise InfopruneError("--scenes counts scenes drawn for the tiny VLM; with --model use --limit")
    found = Data(_read(learn, "--"), _read(test, "--test-")[:limit])
    for questions in (found.calibration, found.test):
        require_images(questions.image_paths, None)
    return found


def _read(files: _Files, prefix: str) -> VQADataset:
    from infoprune_rt.evaluation.formats import read_datasets

    questions, annotations, images = files
    if not questions or images is None:
        raise InfopruneError(f"a model of your own needs data of its own: give {prefix}data and {prefix}images")
    return read_datasets(questions, images, annotations)


def _show(result: dict[str, Any]) -> None:
    from infoprune_rt.benchmarking.ablations.captions import caption
    from infoprune_rt.benchmarking.ablations.tables import TABLES
    from infoprune_rt.benchmarking.ablations.verdicts import verdicts

    for name, (group, make) in TABLES.items():
        head, body = make(result["rows"])
        table = Table(*head, title=name, caption=caption(result, group))
        for line in body:
            table.add_row(*line)
        console.print(table)
    for claim, measured, says in verdicts(result["rows"]):
        say(f"{claim}: {measured}: {says}")
