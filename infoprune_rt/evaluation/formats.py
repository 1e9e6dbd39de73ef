"""Readers of the official data files: VQAv2, TextVQA and GQA (method.md section 7).

The format is recognised by its shape, not by the file's name: VQAv2 has a ``questions`` list (and a second
file with an ``annotations`` list), TextVQA a ``data`` list, GQA is an object keyed by question id.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from infoprune_rt.errors import InfopruneError
from infoprune_rt.evaluation.dataset import VQADataset, VQAExample
from infoprune_rt.evaluation.image_folder import ImageFolder
from infoprune_rt.evaluation.official import WHERE_QUESTIONS

COCO_SUBTYPES = ("val2014", "train2014", "test2015")


def read_dataset(path: Path, image_dir: Path, annotations: Path | None = None) -> VQADataset:
    """Read one data file; ``annotations`` is VQAv2's second file and belongs to no other format.

    Images are looked up in ``image_dir`` under the format's own file names, as .jpg, .jpeg or .png. Raises
    InfopruneError naming the file, the record and the field that is missing or of the wrong type.
    """
    path, folder = Path(path), ImageFolder(Path(image_dir))
    data = _load(path)
    if isinstance(data.get("questions"), list):
        if annotations is None:
            raise InfopruneError(f"{path} is a VQAv2 question file; name its annotations file too (the answers)")
        examples = list(_vqav2(path, data, Path(annotations), folder))
    elif annotations is not None:
        raise InfopruneError(f"{path} has no list of questions, so no annotations file belongs to it; leave it out")
    elif isinstance(data.get("data"), list):
        examples = list(_textvqa(path, data["data"], folder))
    elif data and all(isinstance(record, dict) and "imageId" in record for record in data.values()):
        examples = list(_gqa(path, data, folder))
    else:
        raise _unrecognised(path, data)
    if not examples:
        raise InfopruneError(f"{path} holds no questions")
    _refuse_repeats(path, examples)
    return VQADataset(examples)


def read_datasets(paths: Sequence[Path], image_dir: Path, annotations: Path | None = None) -> VQADataset:
    """Several data files as one data set; ``annotations`` belongs to the VQAv2 file among them."""
    if len(paths) == 1:
        return read_dataset(paths[0], image_dir, annotations)
    vqav2 = [path for path in paths if isinstance(_load(Path(path)).get("questions"), list)]
    if len(vqav2) > 1:
        raise InfopruneError(f"{vqav2[0]} and {vqav2[1]} are both VQAv2 question files; read them one at a time")
    if annotations is not None and not vqav2:
        raise InfopruneError(f"none of the data files is a VQAv2 question file, so leave {annotations} out")
    parts = [read_dataset(path, image_dir, annotations if path in vqav2 else None) for path in paths]
    return VQADataset([example for part in parts for example in part])


def _load(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InfopruneError(
            f"can't read the data file {path}: there is none; the official ones are {WHERE_QUESTIONS}"
        ) from error
    except OSError as error:
        raise InfopruneError(f"can't read the data file {path}: {error.strerror}") from error
    except ValueError as error:
        raise InfopruneError(f"{path} is not valid JSON ({error}); is the download complete?") from error
    if not isinstance(data, dict):
        raise InfopruneError(f"{path} must hold a JSON object as VQAv2, TextVQA and GQA files do")
    return data


def _unrecognised(path: Path, data: dict[str, Any]) -> InfopruneError:
    if not data:
        return InfopruneError(f"{path} holds no questions")
    for key, record in data.items():
        if isinstance(record, dict) and "question" in record:
            return InfopruneError(f"{path}, record {key!r}: the field 'imageId' is missing")
    return InfopruneError(
        f"{path} is none of VQAv2 (a list 'questions'), TextVQA (a list 'data') and GQA (records with an 'imageId')"
    )


class _Record:
    """One record of a file, whose every complaint says which record it is about."""

    def __init__(self, path: Path, name: str, values: Any) -> None:
        self.where = f"{path}, record {name}"
        if not isinstance(values, dict):
            raise InfopruneError(f"{self.where}: expected an object, found {type(values).__name__}")
        self.values = values

    def complain(self, field: str, problem: str) -> InfopruneError:
        return InfopruneError(f"{self.where}: the field {field!r} {problem}")

    def get(self, field: str) -> Any:
        if field not in self.values:
            raise self.complain(field, "is missing")
        return self.values[field]

    def text(self, field: str) -> str:
        value = self.get(field)
        if not isinstance(value, str) or not value.strip():
            raise self.complain(field, "must be a text that is not empty")
        return value

    def id(self, field: str) -> str:
        value = self.get(field)
        if isinstance(value, bool) or not isinstance(value, int | str) or value == "":
            raise self.complain(field, "must be a number or a text")
        return str(value)

    def answers(self, texts: Iterable[Any]) -> tuple[str, ...]:
        answers = tuple(texts)
        if not answers or not all(isinstance(answer, str) for answer in answers):
            raise self.complain("answers", "must be a list of texts that is not empty")
        return answers

    def list(self, field: str) -> list[Any]:
        value = self.get(field)
        if not isinstance(value, list):
            raise self.complain(field, "must be a list")
        return value


def _records(path: Path, values: Iterable[Any], id_field: str) -> Iterator[_Record]:
    for i, value in enumerate(values):
        known = value.get(id_field) if isinstance(value, dict) else None
        yield _Record(path, f"{i}" if known is None else f"{i} ({id_field} {known})", value)


def _vqav2(path: Path, data: dict[str, Any], annotations: Path, folder: ImageFolder) -> Iterator[VQAExample]:
    answers = _load(annotations)
    if not isinstance(answers.get("annotations"), list):
        raise InfopruneError(f"{annotations} is not a VQAv2 annotations file: it has no list 'annotations'")
    by_question = {
        record.id("question_id"): record for record in _records(annotations, answers["annotations"], "question_id")
    }
    subtype = data.get("data_subtype")
    subtypes = (subtype, *COCO_SUBTYPES) if isinstance(subtype, str) else COCO_SUBTYPES
    for record in _records(path, data["questions"], "question_id"):
        question_id, image_id = record.id("question_id"), record.id("image_id")
        if question_id not in by_question:
            raise record.complain("question_id", f"({question_id}) has no annotation in {annotations}")
        truth = by_question[question_id]
        if truth.id("image_id") != image_id:
            raise truth.complain("image_id", f"is another than the question's ({image_id}); the files are not a pair")
        names = [f"COCO_{subtype}_{image_id:0>12}" for subtype in subtypes]
        yield VQAExample(
            question_id=question_id,
            image_id=image_id,
            image_path=folder.find(*names, image_id),
            question=record.text("question"),
            answers=truth.answers(
                entry.get("answer") if isinstance(entry, dict) else None for entry in truth.list("answers")
            ),
            family="vqa",
            question_type=str(truth.values.get("question_type", "")),
        )


def _textvqa(path: Path, data: list[Any], folder: ImageFolder) -> Iterator[VQAExample]:
    for record in _records(path, data, "question_id"):
        image_id = record.id("image_id")
        yield VQAExample(
            question_id=record.id("question_id"),
            image_id=image_id,
            image_path=folder.find(image_id),
            question=record.text("question"),
            answers=record.answers(record.list("answers")),
            family="text",
            question_type=str(record.values.get("question_type", "")),
        )


def _gqa(path: Path, data: dict[str, Any], folder: ImageFolder) -> Iterator[VQAExample]:
    for question_id, values in data.items():
        record = _Record(path, repr(question_id), values)
        image_id, types = record.id("imageId"), record.values.get("types")
        yield VQAExample(
            question_id=question_id,
            image_id=image_id,
            image_path=folder.find(image_id),
            question=record.text("question"),
            answers=(record.text("answer"),),
            family="relations",
            question_type=str(types.get("detailed", "")) if isinstance(types, dict) else "",
        )


def _refuse_repeats(path: Path, examples: list[VQAExample]) -> None:
    seen: set[str] = set()
    for example in examples:
        if example.question_id in seen:
            raise InfopruneError(f"{path}: the question id {example.question_id} occurs twice; ids must be unique")
        seen.add(example.question_id)
