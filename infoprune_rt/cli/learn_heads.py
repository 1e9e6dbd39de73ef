"""``infoprune learn-heads``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from infoprune_rt.cli.options import (
    KS,
    AnnotationsOption,
    DataOption,
    Gate,
    ImagesOption,
    JsonOption,
    Method,
    ModelArgument,
    OnCorrupt,
    OnCorruptOption,
)
from infoprune_rt.cli.output import console, print_json, say
from infoprune_rt.errors import InfopruneError

if TYPE_CHECKING:
    from infoprune_rt.pruning.head_scores import HeadScores


def learn_heads(
    model: ModelArgument,
    data: DataOption,
    images: ImagesOption,
    out: Annotated[Path, typer.Option(help="A run directory; give it again to resume.")],
    annotations: AnnotationsOption = None,
    method: Annotated[Method, typer.Option(help="zeta trains; the others are controls.")] = Method.zeta,
    steps: Annotated[int, typer.Option(min=1, help="Optimiser steps (batches, for michel).")] = 200,
    batch_size: Annotated[int, typer.Option(min=1, help="Questions per process and step.")] = 32,
    lr: Annotated[float, typer.Option(help="Adam's learning rate on the gate logits.")] = 0.05,
    beta: Annotated[float, typer.Option(help="Weight of the effective-rank loss: compresses.")] = 0.3,
    gamma: Annotated[float, typer.Option(help="Weight of the KS loss: preserves.")] = 0.3,
    mu: Annotated[float, typer.Option(help="Weight of the mean of zeta: a budget. 0 is the paper's loss.")] = 0.0,
    ks: Annotated[KS, typer.Option(help="Reading of the KS distance.")] = KS.spectral,
    tau: Annotated[
        float | None,
        typer.Option(
            help="With --ks empirical: how wide the step at each singular value is smeared, in units of the block's "
            "mean singular value (default 0.1)."
        ),
    ] = None,
    gate: Annotated[Gate, typer.Option(help="What zeta is made of.")] = Gate.sigmoid,
    init_logit: Annotated[
        float,
        typer.Option(help="Where every gate's logit starts: 3 opens a sigmoid gate to 0.95; 0 would start halfway."),
    ] = 3.0,
    seed: Annotated[int, typer.Option(min=0, help="Decides the order of the data.")] = 0,
    micro_batch: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Questions differentiated at a time, all of a step's by default; fewer need less memory and give the "
            "same gradient up to rounding. A run may resume with another number.",
        ),
    ] = None,
    checkpoint_activations: Annotated[
        bool,
        typer.Option(
            "--checkpoint-activations",
            help="Compute each layer's activations again in the backward pass instead of keeping them: far less "
            "memory, a quarter to a half more time, the same gradient.",
        ),
    ] = False,
    on_corrupt: OnCorruptOption = OnCorrupt.refuse,
    as_json: JsonOption = False,
) -> None:
    """Learn how much every attention head is worth; writes head-scores.json, log.jsonl and zeta.png.

    L = L_task + beta * L_eRank + gamma * L_KS + mu * mean zeta; only zeta trains. On several GPUs:
    `accelerate launch -m infoprune_rt learn-heads ...`
    """
    from accelerate import Accelerator

    from infoprune_rt.evaluation.formats import read_datasets
    from infoprune_rt.evaluation.training_batches import VQABatches
    from infoprune_rt.model_loading import load_dense_vlm
    from infoprune_rt.pruning.head_methods import score_heads
    from infoprune_rt.pruning.head_training import SCORES, HeadTrainingSettings

    if tau is not None and ks is not KS.empirical:
        raise InfopruneError("--tau is a width of the empirical reading: give --ks empirical as well")
    settings = HeadTrainingSettings(
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        beta=beta,
        gamma=gamma,
        mu=mu,
        ks=ks.value,
        tau=HeadTrainingSettings.tau if tau is None else tau,
        gate=gate.value,
        init_logit=init_logit,
        seed=seed,
        micro_batch=micro_batch,
        checkpoint_activations=checkpoint_activations,
    )
    dataset = read_datasets(data, images, annotations)
    accelerator = Accelerator()
    vlm = load_dense_vlm(model, accelerator.device)
    batches = VQABatches(dataset, vlm.processor, on_corrupt.value)
    scores = score_heads(method.value, vlm.model, vlm.adapter, batches, settings, out, accelerator)
    if not accelerator.is_main_process:
        return
    if as_json:
        print_json({"out": str(out / SCORES), **scores.to_dict()})
        return
    console.print(_table(scores))
    say(f"written to {out / SCORES}")


def _table(scores: HeadScores) -> Table:
    table = Table(title=f"head scores ({scores.method})")
    table.add_column("block", justify="right")
    for head in range(len(scores.scores[0])):
        table.add_column(str(head), justify="right")
    for block, row in enumerate(scores.scores):
        table.add_row(str(block), *(f"{value:.2f}" for value in row))
    return table
