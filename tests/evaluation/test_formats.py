"""The official files: hand-written ones are read, ours round-trip, broken records are named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infoprune_rt.errors import InfopruneError
from infoprune_rt.evaluation.dataset import VQADataset, VQAExample
from infoprune_rt.evaluation.format_writers import write_gqa, write_textvqa, write_vqav2
from infoprune_rt.evaluation.formats import read_dataset

VQAV2_QUESTIONS = {
    "info": {"version": "2.0"},
    "data_subtype": "val2014",
    "questions": [
        {"image_id": 262148, "question": "Where is he looking?", "question_id": 262148000},
        {"image_id": 393225, "question": "How many dogs?", "question_id": 393225001},
    ],
}
VQAV2_ANNOTATIONS = {
    "annotations": [
        {
            "question_type": "how many",
            "multiple_choice_answer": "2",
            "answers": [{"answer": "2", "answer_confidence": "yes", "answer_id": i} for i in range(1, 11)],
            "image_id": 393225,
            "answer_type": "number",
            "question_id": 393225001,
        },
        {
            "question_type": "none of the above",
            "multiple_choice_answer": "down",
            "answers": [{"answer": a, "answer_confidence": "maybe", "answer_id": 1} for a in ["down"] * 9 + ["table"]],
            "image_id": 262148,
            "answer_type": "other",
            "question_id": 262148000,
        },
    ]
}
TEXTVQA = {
    "dataset_type": "val",
    "dataset_name": "textvqa",
    "data": [
        {
            "question": "what is the brand of this camera?",
            "image_id": "003a8ae2ef43b901",
            "image_classes": ["Camera"],
            "question_id": 34602,
            "answers": ["nous les gosses", "dakota", *["dakota digital"] * 8],
            "set_name": "val",
        }
    ],
}
GQA = {
    "201307251": {
        "imageId": "n161313",
        "question": "Is it overcast?",
        "answer": "no",
        "fullAnswer": "No, it is clear.",
        "types": {"detailed": "weatherVerify", "semantic": "global", "structural": "verify"},
    }
}


def _write(path: Path, data: object) -> Path:
    path.write_text(json.dumps(data))
    return path


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for name in ("COCO_val2014_000000262148.jpg", "393225.png", "003a8ae2ef43b901.jpg", "n161313.jpeg"):
        (folder / name).touch()
    return folder


def test_reads_vqav2(tmp_path, images):
    questions, annotations = _write(tmp_path / "q", VQAV2_QUESTIONS), _write(tmp_path / "a", VQAV2_ANNOTATIONS)
    first, second = read_dataset(questions, images, annotations)
    assert first == VQAExample(
        question_id="262148000",
        image_id="262148",
        image_path=images / "COCO_val2014_000000262148.jpg",
        question="Where is he looking?",
        answers=("down",) * 9 + ("table",),
        family="vqa",
        question_type="none of the above",
    )
    assert (second.image_path, second.answers) == (images / "393225.png", ("2",) * 10)


def test_reads_textvqa(tmp_path, images):
    (example,) = read_dataset(_write(tmp_path / "t", TEXTVQA), images)
    assert (example.question_id, example.family) == ("34602", "text")
    assert example.image_path == images / "003a8ae2ef43b901.jpg"
    assert example.majority_answer == "dakota digital"


def test_reads_gqa(tmp_path, images):
    (example,) = read_dataset(_write(tmp_path / "g", GQA), images)
    assert (example.question_id, example.answers, example.family) == ("201307251", ("no",), "relations")
    assert (example.image_path, example.question_type) == (images / "n161313.jpeg", "weatherVerify")


def test_missing_image_is_told_when_read_under_the_official_name(tmp_path, images):
    data = replace_record(GQA, "201307251", imageId="gone")
    (example,) = read_dataset(_write(tmp_path / "g", data), images)
    assert example.image_path == images / "gone.jpg"


def test_no_id_leads_out_of_the_image_folder(tmp_path, images):
    (tmp_path / "secret.jpg").touch()
    data = replace_record(GQA, "201307251", imageId="../secret")
    (example,) = read_dataset(_write(tmp_path / "g", data), images)
    assert example.image_path.parent == images
    assert not example.image_path.exists()


def replace_record(data: dict, key: str, **fields: object) -> dict:
    return data | {key: data[key] | fields}


def without(record: dict, field: str) -> dict:
    return {key: value for key, value in record.items() if key != field}


TEXT_RECORD = TEXTVQA["data"][0]
BROKEN = {
    "no question": (
        {"data": [without(TEXT_RECORD, "question")]},
        r"record 0 \(question_id 34602\).*'question'.*missing",
    ),
    "blank question": ({"data": [TEXT_RECORD | {"question": " "}]}, r"question_id 34602.*'question'"),
    "no id": ({"data": [TEXT_RECORD, without(TEXT_RECORD, "question_id")]}, "record 1: .*'question_id'.*missing"),
    "id is a list": ({"data": [TEXT_RECORD | {"question_id": [1]}]}, "'question_id'"),
    "answers no list": ({"data": [TEXT_RECORD | {"answers": "red"}]}, "'answers' must be a list"),
    "answer no text": ({"data": [TEXT_RECORD | {"answers": [1]}]}, "'answers' must be a list of texts"),
    "no answers": ({"data": [TEXT_RECORD | {"answers": []}]}, "'answers'.*not empty"),
    "record no object": ({"data": [TEXT_RECORD, 7]}, "record 1: expected an object"),
    "repeated id": ({"data": [TEXT_RECORD, TEXT_RECORD]}, "34602 occurs twice"),
    "gqa without image": ({"12": without(GQA["201307251"], "imageId")}, "record '12'.*'imageId' is missing"),
    "gqa answer no text": ({"12": GQA["201307251"] | {"answer": 3}}, "record '12'.*'answer'"),
    "another file": ({"images": [], "categories": []}, "none of VQAv2"),
    "empty list": ({"data": []}, "no questions"),
    "empty object": ({}, "no questions"),
    "a list": ([], "must hold a JSON object"),
    "vqav2 without annotations": (VQAV2_QUESTIONS, "name its annotations"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_told_by_file_record_and_field(tmp_path, images, name):
    data, message = BROKEN[name]
    path = _write(tmp_path / "broken.json", data)
    with pytest.raises(InfopruneError, match=message) as told:
        read_dataset(path, images)
    assert "broken.json" in str(told.value)


BROKEN_PAIRS = {
    "no annotation": ({"annotations": VQAV2_ANNOTATIONS["annotations"][:1]}, "262148000.*no annotation"),
    "no list": ({}, "no list 'annotations'"),
    "another image": (
        {"annotations": [record | {"image_id": 1} for record in VQAV2_ANNOTATIONS["annotations"]]},
        "question_id 262148000.*not a pair",
    ),
    "answers no objects": (
        {"annotations": [record | {"answers": ["2"]} for record in VQAV2_ANNOTATIONS["annotations"]]},
        "'answers' must be a list of texts",
    ),
}


@pytest.mark.parametrize("name", BROKEN_PAIRS)
def test_vqav2_pairs_that_do_not_fit(tmp_path, images, name):
    data, message = BROKEN_PAIRS[name]
    questions, annotations = _write(tmp_path / "q.json", VQAV2_QUESTIONS), _write(tmp_path / "a.json", data)
    with pytest.raises(InfopruneError, match=message):
        read_dataset(questions, images, annotations)


def test_files_that_cannot_be_read(tmp_path, images):
    with pytest.raises(InfopruneError, match=r"gone\.json"):
        read_dataset(tmp_path / "gone.json", images)
    torn = tmp_path / "torn.json"
    torn.write_text(json.dumps(TEXTVQA)[:-20])
    with pytest.raises(InfopruneError, match=r"torn\.json is not valid JSON"):
        read_dataset(torn, images)
    with pytest.raises(InfopruneError, match="image folder"):
        read_dataset(_write(tmp_path / "t", TEXTVQA), tmp_path / "no-such-folder")
    with pytest.raises(InfopruneError, match="leave it out"):
        read_dataset(_write(tmp_path / "t", TEXTVQA), images, torn)


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=12).filter(str.strip)
FORMATS = {"vqa": 10, "text": 10, "relations": 1}


@st.composite
def _examples(draw: st.DrawFn, family: str) -> list[VQAExample]:
    ids = draw(st.lists(st.integers(0, 10**11), min_size=1, max_size=5, unique=True))
    return [
        VQAExample(
            question_id=str(i),
            image_id=str(draw(st.integers(0, 10**11))),
            image_path=Path("set by the reader"),
            question=draw(WORDS),
            answers=tuple(draw(st.lists(WORDS, min_size=FORMATS[family], max_size=FORMATS[family]))),
            family=family,
            question_type=draw(WORDS),
        )
        for i in ids
    ]


@pytest.mark.parametrize("family", FORMATS)
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_what_is_written_is_read_again(tmp_path, images, family, data):
    examples = data.draw(_examples(family))
    path, annotations = tmp_path / "data.json", tmp_path / "annotations.json"
    if family == "vqa":
        write_vqav2(examples, path, annotations, "train2014")
        read = read_dataset(path, images, annotations)
    else:
        write_textvqa(examples, path, "val") if family == "text" else write_gqa(examples, path)
        read = read_dataset(path, images)
    assert [replace(e, image_path=Path("set by the reader")) for e in read] == examples
    stem = "COCO_train2014_{:0>12}.jpg" if family == "vqa" else "{}.jpg"
    assert [e.image_path.name for e in read] == [stem.format(e.image_id) for e in examples]


def test_vqav2_ids_must_be_numbers(tmp_path):
    example = VQAExample("abc", "1", Path(), "What?", ("yes",), "vqa")
    with pytest.raises(InfopruneError, match="'abc'"):
        write_vqav2([example], tmp_path / "q", tmp_path / "a", "val2014")
    assert list(tmp_path.iterdir()) == []


def test_datasets_join_and_slice():
    examples = [VQAExample(str(i), str(i % 2), Path(str(i % 2)), "What?", ("yes",), "vqa") for i in range(5)]
    dataset = VQADataset(examples[:2]) + VQADataset(examples[2:])
    assert list(dataset) == examples
    assert isinstance(dataset[1:3], VQADataset)
    assert list(dataset[1:3]) == examples[1:3]
    assert dataset.image_paths == [Path("0"), Path("1")]
