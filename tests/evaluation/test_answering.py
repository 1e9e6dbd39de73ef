"""Batched, image-sharing answering says what transformers' plain generate says, one question at a time."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from small_vlm import build_dataset, build_llava, build_llava_processor, build_model, build_processor

from infoprune_rt.errors import InfopruneError
from infoprune_rt.evaluation import answering
from infoprune_rt.evaluation.answering import answer
from infoprune_rt.evaluation.dataset import VQADataset
from infoprune_rt.evaluation.prompt import prompt_for

VLMS = {"qwen2_vl": (build_model, build_processor), "llava": (build_llava, build_llava_processor)}


@pytest.fixture(params=VLMS)
def vlm(request):
    model, processor = VLMS[request.param]
    return model(), processor()


@pytest.fixture
def dataset(tmp_path):
    return build_dataset(tmp_path, np.random.default_rng())


@torch.inference_mode()
def _plain(model, processor, example, max_new_tokens):
    """One question alone through transformers' own processor call and generate."""
    image = Image.open(example.image_path).convert("RGB")
    inputs = processor(text=[prompt_for(processor, example)], images=[image], return_tensors="pt")
    said = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
    return processor.tokenizer.decode(said[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()


@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_equals_one_question_at_a_time(vlm, dataset, batch_size):
    model, processor = vlm
    given = answer(model, processor, dataset, batch_size, max_new_tokens=5, progress=False)
    expected = [_plain(model, processor, example, 5) for example in dataset]
    assert [a.text for a in given] == expected
    assert [a.question_id for a in given] == [e.question_id for e in dataset]
    assert len(set(expected)) > 1, "the random model says the same to everything: the test would see nothing"


def test_answers_depend_on_the_image(vlm, dataset):
    """With the images swapped among the questions the answers change, so sharing hands each its own."""
    model, processor = vlm
    paths = [example.image_path for example in dataset]
    swapped = VQADataset([replace(e, image_path=paths[i - 1]) for i, e in enumerate(dataset)])
    said, said_swapped = (
        [a.text for a in answer(model, processor, data, 9, max_new_tokens=6, progress=False)]
        for data in (dataset, swapped)
    )
    assert said_swapped == [_plain(model, processor, e, 6) for e in swapped]
    assert said != said_swapped


def test_each_image_passes_the_tower_once(vlm, dataset, monkeypatch):
    model, processor = vlm
    seen = []
    features = type(model).get_image_features

    def counting(self, **inputs):
        output = features(self, **inputs)
        seen.append(len(output.pooler_output))
        return output

    monkeypatch.setattr(type(model), "get_image_features", counting)
    answer(model, processor, dataset, len(dataset), max_new_tokens=1, progress=False)
    assert seen == [3]


def test_repeats_pixels_where_features_cannot_be_shared(vlm, dataset, monkeypatch):
    """transformers before 5.18: forward has no mm_encoder_outputs."""
    model, processor = vlm
    shared = answer(model, processor, dataset, 4, max_new_tokens=5, progress=False)
    monkeypatch.setattr(answering, "_can_share", lambda model: False)
    assert answer(model, processor, dataset, 4, max_new_tokens=5, progress=False) == shared


def test_corrupt_image_is_refused_by_name_or_skipped(dataset):
    model, processor = build_model(), build_processor()
    broken = dataset[0].image_path
    broken.write_bytes(broken.read_bytes()[:60])
    with pytest.raises(InfopruneError, match=broken.name):
        answer(model, processor, dataset, 4, progress=False)
    given = answer(model, processor, dataset, 4, on_corrupt="skip", progress=False)
    for example, said in zip(dataset, given, strict=True):
        assert (said.text is None) == (example.image_path == broken)
        if said.text is not None:
            assert said.text == _plain(model, processor, example, 16)


def test_nothing_to_say_where_every_image_is_corrupt(dataset):
    for path in dataset.image_paths:
        path.write_bytes(b"")
    given = answer(build_model(), build_processor(), dataset, 4, on_corrupt="skip", progress=False)
    assert [a.text for a in given] == [None] * len(dataset)


def test_refuses_a_batch_of_none(dataset):
    with pytest.raises(InfopruneError, match="at least 1"):
        answer(build_model(), build_processor(), dataset, 0)


def test_text_questions_are_capitalised(dataset):
    processor = build_processor()
    example = replace(dataset[0], question="what IS red ?")
    assert "what IS red ?" in prompt_for(processor, example)
    assert "What is red ?" in prompt_for(processor, replace(example, family="text"))
    processor.chat_template = None
    with pytest.raises(InfopruneError, match=r"chat_template\.jinja"):
        prompt_for(processor, example)
