"""Training batches: what is to be said is the answer, after exactly the prompt that answering shows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from small_vlm import build_dataset, build_llava, build_llava_processor, build_model, build_processor

from infoprune_rt.errors import EmptyBatchError, InfopruneError
from infoprune_rt.evaluation.dataset import VQADataset
from infoprune_rt.evaluation.prompt import prompt_for
from infoprune_rt.evaluation.training_batches import VQABatches

VLMS = {"qwen2_vl": (build_model, build_processor), "llava": (build_llava, build_llava_processor)}


@pytest.fixture(params=VLMS)
def vlm(request):
    model, processor = VLMS[request.param]
    return model(), processor()


@pytest.fixture
def dataset(tmp_path):
    return build_dataset(tmp_path, np.random.default_rng())


def test_labels_are_answer_and_end_behind_the_prompt(vlm, dataset):
    _, processor = vlm
    batches = VQABatches(dataset, processor)
    indices = [5, 0, 7]
    inputs = batches.collate(indices)
    assert len(batches) == len(dataset)
    for row, i in enumerate(indices):
        example = dataset[i]
        image = Image.open(example.image_path)
        prompt = processor(text=[prompt_for(processor, example)], images=[image], return_tensors="pt")
        answer = [*processor.tokenizer(example.answers[0])["input_ids"], processor.tokenizer.eos_token_id]
        expected = prompt["input_ids"][0].tolist() + answer
        padding = inputs["input_ids"].shape[1] - len(expected)
        assert inputs["input_ids"][row].tolist() == [processor.tokenizer.pad_token_id] * padding + expected
        assert inputs["attention_mask"][row].tolist() == [0] * padding + [1] * len(expected)
        labels = inputs["labels"][row]
        assert labels[labels != -100].tolist() == answer
        assert labels[-len(answer) :].tolist() == answer


def test_image_tokens_are_marked_for_qwen2_vl(dataset):
    processor = build_processor()
    inputs = VQABatches(dataset, processor).collate([2, 4])
    assert torch.equal(inputs["mm_token_type_ids"] == 1, inputs["input_ids"] == processor.image_token_id)
    assert int(inputs["mm_token_type_ids"].sum()) == int(inputs["image_grid_thw"].prod(-1).sum()) // 4


def test_batch_loss_is_the_mean_of_single_losses(vlm, dataset):
    """Padding and neighbours change nothing: the summed loss of a batch is the sum over its examples alone."""
    model, processor = vlm
    batches = VQABatches(dataset, processor)
    indices = [0, 3, 8, 4]

    def summed(rows: list[int], dtype: torch.dtype) -> float:
        inputs = batches.collate(rows)
        labels = inputs.pop("labels")[:, 1:].flatten()
        with torch.no_grad():
            logits = model.to(dtype)(**inputs).logits[:, :-1].flatten(0, 1)
        return float(torch.nn.functional.cross_entropy(logits.double(), labels, ignore_index=-100, reduction="sum"))

    reference = sum(summed([i], torch.float64) for i in indices)
    single = sum(summed([i], torch.float32) for i in indices)
    assert abs(summed(indices, torch.float64) - reference) <= 2 * abs(single - reference) + 1e-9 * abs(reference)


def test_majority_answer_is_learned(dataset):
    processor = build_processor()
    example = replace(dataset[0], answers=("red", "blue", "blue", "red", "blue"))
    labels = VQABatches(VQADataset([example]), processor).collate([0])["labels"][0]
    assert processor.tokenizer.decode(labels[labels != -100]).split() == ["blue", "<end>"]


def test_a_batch_of_which_nothing_is_left_is_told_apart(dataset):
    dataset[2].image_path.write_bytes(b"torn")
    skipping = VQABatches(dataset, build_processor(), "skip")
    with pytest.raises(EmptyBatchError, match="every image of a batch is corrupt"):
        skipping.collate([2])
    assert len(skipping.collate([2, 0])["labels"]) == 1
    with pytest.raises(InfopruneError) as told:
        VQABatches(dataset, build_processor()).collate([2])
    assert not isinstance(told.value, EmptyBatchError)


def test_refuses_a_tokenizer_that_cannot_end(dataset):
    processor = build_processor()
    processor.tokenizer.eos_token = None
    with pytest.raises(InfopruneError, match="eos_token"):
        VQABatches(dataset, processor)
