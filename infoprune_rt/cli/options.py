"""Arguments that several commands share, and the fixed choices of options."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class Method(StrEnum):
    """How heads are scored."""

    zeta = "zeta"
    random = "random"
    magnitude = "magnitude"
    michel = "michel"


class KS(StrEnum):
    """Reading of the KS distance."""

    spectral = "spectral"
    empirical = "empirical"


class Gate(StrEnum):
    """What zeta is made of."""

    sigmoid = "sigmoid"
    hard_concrete = "hard_concrete"


class Mode(StrEnum):
    """How an FFN is fitted."""

    dense = "dense"
    taylor = "taylor"
    rrr = "rrr"
    neurons = "neurons"
    hybrid = "hybrid"


class Bias(StrEnum):
    """Which constant a linearised FFN gets."""

    taylor = "taylor"
    mean = "mean"


class Quantize(StrEnum):
    """What weights become."""

    int8 = "int8"


class Activation(StrEnum):
    """What may stand between the factors of an FFN."""

    quick_gelu = "quick_gelu"
    gelu = "gelu"
    gelu_pytorch_tanh = "gelu_pytorch_tanh"
    silu = "silu"


class OnCorrupt(StrEnum):
    """What to do about a picture that can't be decoded."""

    refuse = "refuse"
    skip = "skip"


class Normalisation(StrEnum):
    """How answers are normalised before they are compared."""

    official = "official"
    lmms_eval = "lmms-eval"


PATCHES = 1564  # those of a COCO picture, 640 x 480, as Qwen2-VL takes it: whose FLOPs are shown

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
ModelArgument = Annotated[str, typer.Argument(help="A local directory or hub id: a Qwen2-VL or LLaVA-1.5 model.")]
DataOption = Annotated[
    list[Path], typer.Option("--data", help="Questions in an official file: VQAv2, TextVQA or GQA. Repeatable.")
]
AnnotationsOption = Annotated[Path | None, typer.Option(help="VQAv2's second file, with the answers.")]
ImagesOption = Annotated[Path, typer.Option(help="The folder with the pictures that the questions name.")]
DeviceOption = Annotated[str, typer.Option("--device", help="auto (a GPU if there is one), cpu, cuda or cuda:N.")]
OnCorruptOption = Annotated[OnCorrupt, typer.Option(help="What to do about broken pictures.")]
