"""Models as the command line names them: a dense or compact model, its processor, its adapter."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoModelForImageTextToText,
    CLIPImageProcessorPil,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2VLImageProcessorPil,
)
from transformers.processing_utils import ProcessorMixin

from infoprune_rt import checkpoint
from infoprune_rt.errors import InfopruneError
from infoprune_rt.evaluation.images import ImageProcessor, OnCorrupt, TowerBatches, image_size, tower_batches
from infoprune_rt.hardware import compute_dtype
from infoprune_rt.hub import fetch, resolve_model_dir
from infoprune_rt.processing import load_processor
from infoprune_rt.shards import weight_map
from infoprune_rt.towers import adapter_for
from infoprune_rt.towers.base import TowerAdapter, TowerShape
from infoprune_rt.towers.loading import read_config, stored_dtype
from infoprune_rt.vlm import load_vlm, refuse_nan

_IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
_IMAGE_PROCESSORS = {"qwen2_vl": Qwen2VLImageProcessorPil, "clip": CLIPImageProcessorPil}


@dataclass(frozen=True)
class Source:
    """A dense model as its config describes it; nothing of its weights is read."""

    directory: Path
    config: PretrainedConfig
    adapter: TowerAdapter

    @property
    def architecture(self) -> str:
        """The tower's architecture."""
        return self.adapter.architecture

    @property
    def used_blocks(self) -> int:
        """How many blocks, from the front, the model reads from."""
        return self.adapter.used_blocks(self.config)

    @property
    def shape(self) -> TowerShape:
        """The tower's sizes."""
        return self.adapter.shape(self.adapter.vision_config(self.config))


@dataclass(frozen=True)
class LoadedVLM:
    """A full model in eval mode, with its processor."""

    model: PreTrainedModel
    processor: ProcessorMixin
    adapter: TowerAdapter


def describe_source(model: str | Path) -> Source:
    """What a dense model's config says. Raises InfopruneError for compact and unsupported models."""
    directory = resolve_model_dir(model)
    if (directory / checkpoint.MANIFEST).exists():
        raise InfopruneError(f"{model} is a compact checkpoint already; start from the dense model")
    config = read_config(directory)
    return Source(directory, config, adapter_for(config))


CPU = torch.device("cpu")


def load_dense_vlm(model: str | Path, device: torch.device = CPU) -> LoadedVLM:
    """A full transformers model on ``device``, in the dtype that this computes fastest."""
    source = describe_source(model)
    if source.config.model_type not in source.adapter.vlm_model_types:
        raise InfopruneError(f"{model} is a vision tower alone; this needs the full model with its language half")
    vlm = _load_transformers(source.directory, compute_dtype(stored_dtype(source.directory), device))
    vlm.to(device)
    return LoadedVLM(vlm, load_processor(source.directory), source.adapter)


def _load_transformers(directory: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Stock loading, but weights that are torn, missing or not finite are refused instead of made up."""
    fetch(directory, weight_map(directory, stem="model").values())
    try:
        vlm, report = AutoModelForImageTextToText.from_pretrained(
            directory, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = " ".join(str(error).split())
        raise InfopruneError(f"transformers can't load the model in {directory}: {reason}") from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise InfopruneError(
            f"the weights in {directory} lack {len(missing)} of the model's tensors, first {missing[0]!r}; "
            "download the checkpoint again"
        )
    for name, parameter in vlm.named_parameters():
        refuse_nan(directory, name, parameter)
    vlm.eval()
    return vlm


def load_any_vlm(model: str | Path, device: torch.device = CPU) -> LoadedVLM:
    """A full model on ``device``, dense or compact."""
    directory = resolve_model_dir(model)
    if not (directory / checkpoint.MANIFEST).exists():
        return load_dense_vlm(directory, device)
    vlm = load_vlm(directory)
    vlm.to(device, compute_dtype(vlm.dtype, device))
    return LoadedVLM(vlm, load_processor(directory), adapter_for(vlm.config))


def _image_processor(source: Source) -> ImageProcessor:
    try:
        processor: ImageProcessor = _IMAGE_PROCESSORS[source.architecture].from_pretrained(source.directory)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InfopruneError(
            f"{source.directory} has no readable preprocessor_config.json, which says how pictures are prepared; "
            "copy it beside the model"
        ) from error
    return processor


class CalibrationBatches:
    """Calibration pictures of a folder, opened only when a fit asks for them."""

    def __init__(self, source: Source, images: Path | None, limit: int, batch_size: int, on_corrupt: OnCorrupt) -> None:
        self._source, self._images, self._limit = source, images, limit
        self._batch_size, self._on_corrupt = batch_size, on_corrupt
        self._batches: TowerBatches | None = None

    def __call__(self) -> Iterable[Mapping[str, Tensor]]:
        """The batches; raises InfopruneError if there is no folder or no picture in it."""
        processor, paths = self._processor_and_paths()
        self._batches = tower_batches(paths, processor, self._source.adapter, self._batch_size, self._on_corrupt)
        return self._batches

    def rows(self) -> list[int]:
        """Rows of the residual stream, batch by batch, by the pictures' headers; unreadable ones count as none."""
        processor, paths = self._processor_and_paths()
        vision_config = self._source.adapter.vision_config(self._source.config)

        def count(path: Path) -> int:
            try:
                width, height = image_size(path)
                return self._source.adapter.rows(vision_config, processor, height, width)
            except ValueError:  # InfopruneError among them; what cannot be prepared is told when its turn comes
                return 0

        counts = [count(path) for path in paths]
        return [sum(counts[i : i + self._batch_size]) for i in range(0, len(counts), self._batch_size)]

    def _processor_and_paths(self) -> tuple[ImageProcessor, list[Path]]:
        if self._images is None:
            raise InfopruneError("this plan is fitted to data: give --images, a folder of calibration pictures")
        return _image_processor(self._source), find_images(self._images)[: self._limit]

    @property
    def skipped(self) -> dict[Path, str]:
        """Pictures that could not be decoded, and why."""
        return {} if self._batches is None else self._batches.source.skipped


def calibration_batches(
    source: Source, images: Path | None, limit: int, batch_size: int, on_corrupt: OnCorrupt
) -> CalibrationBatches:
    """Batches over the first ``limit`` pictures of a folder; checked now as far as that is cheap."""
    if images is not None and not images.is_dir():
        raise InfopruneError(f"there is no folder {images} of calibration pictures")
    if limit < 1:
        raise InfopruneError(f"at least one calibration picture is needed, not {limit}")
    return CalibrationBatches(source, images, limit, batch_size, on_corrupt)


def find_images(folder: Path) -> list[Path]:
    """All pictures below a folder, in order of name."""
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in _IMAGE_SUFFIXES)
    if not paths:
        raise InfopruneError(f"{folder} holds no pictures ({', '.join(sorted(_IMAGE_SUFFIXES))})")
    return paths
