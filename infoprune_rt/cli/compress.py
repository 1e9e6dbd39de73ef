"""``infoprune compress``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from infoprune_rt.cli.options import (
    PATCHES,
    Activation,
    Bias,
    DeviceOption,
    JsonOption,
    Mode,
    ModelArgument,
    OnCorrupt,
    OnCorruptOption,
    Quantize,
)
from infoprune_rt.cli.output import block_progress, console, print_json, say
from infoprune_rt.errors import InfopruneError

if TYPE_CHECKING:
    from torch import Tensor

    from infoprune_rt.model_loading import Source
    from infoprune_rt.plan import FFNMode, FFNPlan

# What --plan takes the place of.
PLAN_OPTIONS = (
    "heads",
    "keep",
    "zeta_below",
    "min_heads",
    "fold_zeta",
    "ffn",
    "size",
    "epsilon",
    "bias",
    "between",
    "max_error",
    "dense_block",
    "refit",
    "sequential",
)


def compress(
    context: typer.Context,
    model: ModelArgument,
    out: Annotated[Path, typer.Argument(help="The compact checkpoint's directory.")],
    images: Annotated[Path | None, typer.Option(help="A folder of calibration pictures.")] = None,
    max_images: Annotated[int, typer.Option(min=1, help="How many of them to use, in order of name.")] = 256,
    plan: Annotated[
        Path | None, typer.Option(help="Apply this plan (perhaps edited) instead of making one by the options below.")
    ] = None,
    heads: Annotated[Path | None, typer.Option(help="head-scores.json from learn-heads; without it all stay.")] = None,
    keep: Annotated[float | None, typer.Option(help="Budget: the fraction of all heads that stays.")] = None,
    zeta_below: Annotated[float | None, typer.Option(help="Threshold: heads with zeta below this go.")] = None,
    min_heads: Annotated[int, typer.Option(min=0, help="With --keep: heads that stay in every block.")] = 0,
    fold_zeta: Annotated[
        bool,
        typer.Option(
            "--fold-zeta",
            help="Keep the surviving heads at their zeta, multiplied into the output projection, as they were trained. "
            "By default they are set back to 1, which measured better on the tiny VLM. Needs --no-refit: refitting "
            "solves anew what this scales.",
        ),
    ] = False,
    ffn: Annotated[Mode, typer.Option(help="How FFNs are fitted.")] = Mode.dense,
    size: Annotated[
        int | None,
        typer.Option(
            help="Rank (taylor, rrr), neurons kept (neurons), or both together, half of it each (hybrid); taken as "
            "given, 16s run best."
        ),
    ] = None,
    epsilon: Annotated[float | None, typer.Option(help="Admitted relative error, instead of a size.")] = None,
    bias: Annotated[Bias, typer.Option(help="taylor's constant: the expansion's own, or mean-corrected.")] = Bias.mean,
    between: Annotated[
        Activation | None,
        typer.Option(
            help="An activation between the two factors of taylor or rrr; default: none. The paper leaves open whether "
            "there is one. The factors are fitted without it, and whether it costs or gains accuracy differs: measure."
        ),
    ] = None,
    max_error: Annotated[float | None, typer.Option(help="FFNs whose held-out error is larger stay dense.")] = None,
    dense_block: Annotated[list[int] | None, typer.Option(help="Keep this block's FFN dense. Repeatable.")] = None,
    refit: Annotated[bool, typer.Option(help="Solve the output projections again on the kept heads.")] = True,
    sequential: Annotated[bool, typer.Option(help="Fit each block on the already compressed stream.")] = True,
    quantize: Annotated[
        Quantize | None,
        typer.Option(
            help="Store all blocks' weights as int8 with a scale per output channel (half of bfloat16's bytes, and no "
            "training afterwards) and round their inputs to int8 per token at run time, which costs some accuracy: "
            "measure it. Given beside --plan, it changes the plan."
        ),
    ] = None,
    tower_only: Annotated[
        bool, typer.Option("--tower-only", help="Write the tower alone, without the language model.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Calibration pictures at a time.")] = 8,
    device: DeviceOption = "auto",
    spill_dir: Annotated[
        Path | None, typer.Option(help="Where --sequential keeps activations; default: the temporary directory.")
    ] = None,
    on_corrupt: OnCorruptOption = OnCorrupt.refuse,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an earlier compact checkpoint.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Remove heads and replace FFNs for real: a smaller checkpoint with its plan.

    The paper's recipe: `--heads H --zeta-below 0.5 --ffn taylor --bias taylor --epsilon 0.001 --no-refit
    --no-sequential`. Ours: `--heads H --keep 0.5 --ffn neurons --size M`.
    """
    from infoprune_rt.compression import compress_checkpoint, make_plan
    from infoprune_rt.hardware import named_device
    from infoprune_rt.inspection import inspect_model, inspection_table
    from infoprune_rt.model_loading import calibration_batches, describe_source
    from infoprune_rt.plan import Plan

    place = named_device(device)
    source = describe_source(model)
    if plan is not None:
        _refuse_beside_plan(context)
        wanted = Plan.read(plan)
    else:
        form = _ffn_plan(ffn, size, epsilon, bias, between, max_error, dense_block)
        masks, how = _masks(source, heads, keep, zeta_below, min_heads)
        zeta = _zeta(heads, refit) if fold_zeta else None
        wanted = make_plan(
            source.architecture,
            source.shape,
            masks=masks,
            zeta=zeta,
            ffn=form,
            dense_blocks=dense_block or [],
            used_blocks=source.used_blocks,
            refit=refit and masks is not None,
            sequential=sequential,
            method=how | ({"fold_zeta": True} if fold_zeta else {}),
        )
    if quantize is not None:
        wanted = wanted.quantized(quantize.value)  # type: ignore[arg-type]  # the enum's values are the literal's
    batches = calibration_batches(source, images, max_images, batch_size, on_corrupt.value)
    with block_progress("compressing") as progress:
        compress_checkpoint(
            model,
            out,
            wanted,
            batches,
            tower_only=tower_only,
            overwrite=overwrite,
            device=place,
            spill_dir=spill_dir,
            progress=progress,
        )
    skipped = [{"image": str(path), "why": why} for path, why in batches.skipped.items()]
    found = inspect_model(out, PATCHES)
    if as_json:
        print_json({**found.to_dict(), "out": str(out), "skipped_images": skipped})
        return
    console.print(inspection_table(found))
    for item in skipped:
        say(f"skipped {item['image']}: {item['why']}")
    say(f"written to {out}")


def _refuse_beside_plan(context: typer.Context) -> None:
    """A plan says everything; an option beside it would be given in vain."""
    for name in PLAN_OPTIONS:
        given = context.get_parameter_source(name)
        if given is not None and given.name == "COMMANDLINE":
            option = name.replace("_", "-")
            raise InfopruneError(f"--plan says all that --{option} could say; edit the plan's file, or leave one out")


def _ffn_plan(
    mode: Mode,
    size: int | None,
    epsilon: float | None,
    bias: Bias,
    between: Activation | None,
    max_error: float | None,
    dense_blocks: list[int] | None,
) -> FFNPlan:
    from infoprune_rt.plan import FACTORED_MODES, FFNPlan

    if between is not None and mode.value not in FACTORED_MODES:
        raise InfopruneError(f"--between needs two factors to stand between: give --ffn {' or '.join(FACTORED_MODES)}")
    if mode is Mode.dense:
        given = {"size": size, "epsilon": epsilon, "max-error": max_error, "dense-block": dense_blocks or None}
        for name, value in given.items():
            if value is not None:
                raise InfopruneError(
                    f"--{name} needs a way to fit FFNs: give --ffn taylor, rrr, neurons or hybrid as well"
                )
        return FFNPlan()
    if (size is None) == (epsilon is None):
        what = {Mode.neurons: "neurons", Mode.hybrid: "neurons and rank together"}.get(mode, "a rank")
        raise InfopruneError(f"--ffn {mode.value} needs either --size ({what}) or --epsilon (an admitted error)")
    fitted: FFNMode = mode.value  # type: ignore[assignment]  # the enum's values are the literal's
    phi = None if between is None else between.value
    return FFNPlan(mode=fitted, size=size, epsilon=epsilon, bias=bias.value, between=phi, max_error=max_error)


def _masks(
    source: Source, heads: Path | None, keep: float | None, zeta_below: float | None, min_heads: int
) -> tuple[Tensor | None, dict[str, Any]]:
    """Masks [L, H] and how they were chosen; (None, {}) keeps all heads."""
    from infoprune_rt.pruning.head_scores import HeadScores
    from infoprune_rt.pruning.selection import budget, threshold

    if min_heads and keep is None:
        raise InfopruneError("--min-heads belongs to a budget: give --keep as well")
    if heads is None:
        if keep is not None or zeta_below is not None:
            raise InfopruneError("choosing heads needs their scores: give --heads head-scores.json from learn-heads")
        return None, {}
    scores = HeadScores.read(heads)
    scores.check_tower(source.architecture, source.shape)
    used = source.used_blocks
    how: dict[str, Any] = {"scores": scores.method, "settings": scores.settings, "used_blocks": used}
    if keep is not None and zeta_below is None:
        return budget(scores, keep, min_heads, used), {**how, "select": "budget", "keep": keep, "min_heads": min_heads}
    if zeta_below is not None and keep is None:
        return threshold(scores, zeta_below, used), {**how, "select": "threshold", "z": zeta_below}
    raise InfopruneError("--heads needs either --keep (a budget) or --zeta-below (a threshold)")


def _zeta(heads: Path | None, refit: bool) -> Tensor:
    """What --fold-zeta folds in, [L, H]."""
    from infoprune_rt.pruning.head_scores import HeadScores
    from infoprune_rt.pruning.selection import zeta_of

    if heads is None:
        raise InfopruneError("--fold-zeta needs a trained zeta: give --heads head-scores.json from learn-heads")
    if refit:
        raise InfopruneError("--fold-zeta scales the output projections that --refit solves anew: give --no-refit too")
    return zeta_of(HeadScores.read(heads))
