"""A VLM answers a data set's questions: batched, greedy, every image seen by the tower once a batch."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.processing_utils import ProcessorMixin

from infoprune_rt.errors import InfopruneError
from infoprune_rt.evaluation.dataset import VQADataset, VQAExample
from infoprune_rt.evaluation.encoding import EncodedPrompts, encode_prompts
from infoprune_rt.evaluation.images import ImageSource, OnCorrupt
from infoprune_rt.evaluation.prompt import prompt_for
from infoprune_rt.progress import progress_bars


@dataclass(frozen=True)
class Answer:
    """What the model said; ``text`` is None where the image was corrupt and skipped, for the reason ``why``."""

    question_id: str
    text: str | None
    why: str | None = None


def answer(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: VQADataset,
    batch_size: int,
    max_new_tokens: int = 16,
    on_corrupt: OnCorrupt = "refuse",
    progress: bool = True,
) -> list[Answer]:
    """Greedy answers, one for each example and in the data set's order.

    ``batch_size`` counts questions; those about one image are put side by side so that they share its
    pass through the vision tower. Works for Qwen2-VL and LLaVA, dense or compact.
    """
    batches = question_batches(dataset, batch_size)
    given: dict[int, Answer] = {}
    for batch, said in answer_batches(model, processor, dataset, batches, max_new_tokens, on_corrupt, progress):
        given.update(zip(batch, said, strict=True))
    return [given[i] for i in range(len(dataset))]


def question_batches(dataset: VQADataset, batch_size: int) -> list[list[int]]:
    """Indices of questions, those about the same image side by side, in order of the images' first use."""
    if batch_size < 1:
        raise InfopruneError(f"the batch size must be at least 1, not {batch_size}")
    rank = {path: i for i, path in enumerate(dataset.image_paths)}
    order = sorted(range(len(dataset)), key=lambda i: rank[dataset[i].image_path])
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def answer_batches(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: VQADataset,
    batches: Sequence[Sequence[int]],
    max_new_tokens: int,
    on_corrupt: OnCorrupt,
    progress: bool,
) -> Iterator[tuple[Sequence[int], list[Answer]]]:
    """Each batch of questions with its answers, as they come; questions in no batch count as answered before."""
    source = ImageSource(on_corrupt)
    answered = len(dataset) - sum(map(len, batches))
    title = f"answering, resumed at {answered}" if answered else "answering"
    with progress_bars(shown=progress) as bar:
        task = bar.add_task(title, total=len(dataset), completed=answered)
        for batch in batches:
            yield batch, _answer_batch(model, processor, [dataset[i] for i in batch], max_new_tokens, source)
            bar.advance(task, len(batch))


@torch.inference_mode()
def _answer_batch(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    examples: Sequence[VQAExample],
    max_new_tokens: int,
    source: ImageSource,
) -> list[Answer]:
    encoded, answered = _encode(processor, examples, source)
    said: list[str] = []
    if encoded is not None:
        try:
            said = _generate(model, processor, encoded, max_new_tokens)
        except torch.OutOfMemoryError as error:
            raise InfopruneError(
                f"{model.device} ran out of memory at {len(answered)} questions at a time; give a smaller --batch-size"
            ) from error
    texts = dict(zip(answered, said, strict=True))
    skipped = source.skipped
    return [Answer(e.question_id, texts.get(i), skipped.get(e.image_path)) for i, e in enumerate(examples)]


def _encode(
    processor: ProcessorMixin, examples: Sequence[VQAExample], source: ImageSource
) -> tuple[EncodedPrompts | None, list[int]]:
    """The inputs of those examples whose image is readable, and which they are."""
    images: dict[Path, Image.Image | None] = {}
    for example in examples:
        if example.image_path not in images:
            images[example.image_path] = source.read(example.image_path)
    readable = {path: image for path, image in images.items() if image is not None}
    rows = {path: row for row, path in enumerate(readable)}
    answered = [place for place, example in enumerate(examples) if example.image_path in rows]
    if not answered:
        return None, []
    prompts = [prompt_for(processor, examples[place]) for place in answered]
    image_of = [rows[examples[place].image_path] for place in answered]
    return encode_prompts(processor, prompts, list(readable.values()), image_of), answered


def _generate(
    model: PreTrainedModel, processor: ProcessorMixin, encoded: EncodedPrompts, max_new_tokens: int
) -> list[str]:
    tokens = {name: value.to(model.device) for name, value in encoded.tokens.items()}
    generated = model.generate(
        **tokens,
        **_image_inputs(model, encoded),
        max_new_tokens=max_new_tokens,
        do_sample=False,
        num_beams=1,
        # A checkpoint's sampling settings mean nothing to greedy decoding but a warning.
        temperature=None,
        top_p=None,
        top_k=None,
    )
    new = generated[:, tokens["input_ids"].shape[1] :]
    return [text.strip() for text in processor.tokenizer.batch_decode(new, skip_special_tokens=True)]


def _image_inputs(model: PreTrainedModel, encoded: EncodedPrompts) -> dict[str, object]:
    """Every image's features, computed once and handed to each of its questions.

    transformers before 5.18 has no ``mm_encoder_outputs`` argument: there the pixels are repeated instead.
    What else describes the images (Qwen2-VL's grids) is repeated in any case.
    """
    images: dict[str, Tensor] = {name: value.to(model.device) for name, value in encoded.images.items()}
    described = {name: value[encoded.image_of] for name, value in images.items() if name != "pixel_values"}
    if not _can_share(model):
        return {"pixel_values": _repeated_pixels(images, encoded.image_of), **described}
    features = model.get_image_features(**images, return_dict=True).pooler_output
    shared = BaseModelOutputWithPooling(pooler_output=[features[row] for row in encoded.image_of])
    return {"mm_encoder_outputs": {"image": shared}, **described}


def _can_share(model: PreTrainedModel) -> bool:
    return "mm_encoder_outputs" in inspect.signature(model.forward).parameters


def _repeated_pixels(images: dict[str, Tensor], image_of: list[int]) -> Tensor:
    pixels = images["pixel_values"]
    if "image_grid_thw" not in images:
        return pixels[image_of]
    patches = torch.split(pixels, images["image_grid_thw"].prod(-1).tolist())
    return torch.cat([patches[row] for row in image_of])
