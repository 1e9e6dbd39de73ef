"""Table 1's subjects: a preset's or a checkpoint's model with its compact tower and YOPO's settings."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import Qwen2VLConfig

from infoprune_rt.baselines.yopo import DecoderShape, head_ratios, preset
from infoprune_rt.benchmarking.table1 import presets
from infoprune_rt.benchmarking.table1.subject import Subject
from infoprune_rt.compression import compress, make_plan
from infoprune_rt.demo.fullsize import compact_from, photograph
from infoprune_rt.demo.handwriting import read_handwriting, write_handwriting
from infoprune_rt.demo.tiny_vlm import SHIPPED
from infoprune_rt.errors import InfopruneError
from infoprune_rt.evaluation.dataset import VQADataset
from infoprune_rt.evaluation.images import tower_batches
from infoprune_rt.evaluation.training_batches import VQABatches
from infoprune_rt.evaluation.weight_memory import require_weight_memory
from infoprune_rt.hardware import available_bytes, compute_dtype
from infoprune_rt.hub import resolve_model_dir
from infoprune_rt.model_loading import LoadedVLM, load_dense_vlm
from infoprune_rt.plan import FFNPlan
from infoprune_rt.pruning.head_methods import score_heads
from infoprune_rt.pruning.head_training import HeadTrainingSettings
from infoprune_rt.pruning.selection import budget
from infoprune_rt.runtime.encoder import CompactEncoder

CALIBRATION_SCENES, CALIBRATION_SEED = 300, 11
GATES = HeadTrainingSettings(steps=100, batch_size=32, beta=0.3, gamma=0.3)  # the paper's loss, as in the demo
KEEP, NEURONS = 0.5, 192
RATIO_QUESTIONS, RATIO_BATCH = 64, 4  # for YOPO's statistic
_COPIES = 3  # of the tower beside the model's own: masked, and what compressing it takes


@dataclass(frozen=True)
class Choice:
    """Which model. preset: one of PRESETS, or None for a checkpoint; model, compact: its directories, dense and
    compact. yopo: one of YOPO's presets."""

    preset: str | None
    model: Path | None
    compact: Path | None
    yopo: str
    device: torch.device


def build(choice: Choice, calibration: VQADataset | None) -> Subject:
    """The subject of a choice; InfopruneError before anything is loaded where it cannot fit into memory.

    calibration: questions about a checkpoint, which choose YOPO's heads. Without them, and where weights are random,
    heads are dropped evenly.
    """
    if choice.preset is None:
        return _from_checkpoints(choice, calibration)
    return _tiny(choice) if choice.preset == "tiny" else _of_published_size(choice)


def _kernels(device: torch.device) -> str:
    return "triton" if device.type == "cuda" else "csrc"


def _of_published_size(choice: Choice) -> Subject:
    """Random weights: they answer nothing, and take as long as any. The tower is compressed before the rest is made."""
    assert choice.preset is not None
    config = presets.published_config(choice.preset)
    dtype = compute_dtype(torch.bfloat16, choice.device)
    require_memory(choice.preset, config, dtype, choice.device)
    tower = presets.random_tower(config, dtype)
    compact = compact_from(tower, photograph()).to(choice.device)
    model = presets.random_model(config, dtype, choice.device, tower)
    yopo = preset(choice.yopo, DecoderShape.of(config))
    processor = presets.image_processor()
    return Subject(model, presets.ADAPTER, processor, compact, yopo, "random", _kernels(choice.device))


def require_memory(name: str, config: Qwen2VLConfig, dtype: torch.dtype, device: torch.device) -> None:
    """Refuse what cannot fit; unknown memory is not judged."""
    weights, tower = presets.bytes_of(config, dtype)
    need, free = weights + _COPIES * tower, available_bytes(device)
    if free is not None and need > free:
        raise InfopruneError(
            f"preset {name} needs about {need / 2**30:.1f} GiB on {device} ({weights / 2**30:.1f} of them weights), "
            f"but only {free / 2**30:.1f} GiB are available; free some memory, or take a smaller preset"
        )


def _tiny(choice: Choice) -> Subject:
    """The shipped model, compressed as in the demo: the better half of its heads by zeta, refitted, and 192 neurons."""
    vlm = load_dense_vlm(SHIPPED, choice.device)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        write_handwriting(place / "data", "train", CALIBRATION_SCENES, CALIBRATION_SEED)
        questions = read_handwriting(place / "data")
        compact = _compressed(vlm, questions, place)
        ratios = head_ratios(vlm.model, _prompts(vlm, questions))
    return _subject(vlm, compact, choice, "real (the shipped tiny VLM)", ratios)


def _prompts(vlm: LoadedVLM, dataset: VQADataset) -> Iterator[dict[str, Tensor]]:
    """The first questions with their answers, as the model takes them."""
    batches = VQABatches(dataset, vlm.processor)
    for start in range(0, min(RATIO_QUESTIONS, len(batches)), RATIO_BATCH):
        batch = batches.collate(range(start, min(start + RATIO_BATCH, len(batches))))
        yield {name: value.to(vlm.model.device) for name, value in batch.items() if name != "labels"}


def _compressed(vlm: LoadedVLM, questions: VQADataset, place: Path) -> CompactEncoder:
    tower, adapter = vlm.adapter.tower_of(vlm.model), vlm.adapter
    cpu_only = vlm.model.device.type == "cpu"
    scores = score_heads(
        "zeta",
        vlm.model,
        adapter,
        VQABatches(questions, vlm.processor),
        GATES,
        place / "heads",
        Accelerator(cpu=cpu_only),
    )
    plan = make_plan(
        adapter.architecture,
        adapter.shape(tower.config),
        masks=budget(scores, KEEP),
        ffn=FFNPlan(mode="neurons", size=NEURONS),
    )
    batches = tower_batches(questions.image_paths, vlm.processor.image_processor, adapter, batch_size=32)
    return compress(tower, adapter, plan, lambda: batches)


def _from_checkpoints(choice: Choice, calibration: VQADataset | None) -> Subject:
    assert choice.model is not None
    assert choice.compact is not None
    require_weight_memory(resolve_model_dir(choice.model), choice.device)
    vlm = load_dense_vlm(choice.model, choice.device)
    if vlm.adapter.architecture != "qwen2_vl":
        raise InfopruneError(f"Table 1 knows Qwen2-VL's prompts alone, and {choice.model} is another kind of model")
    compact = CompactEncoder.from_pretrained(choice.compact, dtype=vlm.model.dtype).to(choice.device)
    if compact.plan is None:
        raise InfopruneError(f"{choice.compact} carries no plan, which says what its tower was cut from")
    _refuse_unmaskable(compact, choice.compact)
    compact.plan.check_tower(vlm.adapter.architecture, vlm.adapter.shape(vlm.adapter.vision_config(vlm.model.config)))
    ratios = None if calibration is None else head_ratios(vlm.model, _prompts(vlm, calibration))
    return _subject(vlm, compact, choice, f"real ({choice.model.name})", ratios)


def _refuse_unmaskable(compact: CompactEncoder, place: Path) -> None:
    """What no masked dense tower can compute."""
    for block in compact.config.blocks:
        odd = {"hybrid FFNs": block["ffn"] == "hybrid"}
        odd |= {"int8 weights": block.get("quantize"), "another activation": block.get("activation")}
        found = next((what for what, there in odd.items() if there), None)
        if found is not None:
            raise InfopruneError(f"{place} has {found}, of which Table 1 has no masked form; compress it without")


def _subject(vlm: LoadedVLM, compact: CompactEncoder, choice: Choice, weights: str, ratios: Any) -> Subject:
    yopo = preset(choice.yopo, DecoderShape.of(vlm.model.config), ratios)
    processor = vlm.processor.image_processor
    return Subject(vlm.model, vlm.adapter, processor, compact, yopo, weights, _kernels(choice.device), vlm.processor)
