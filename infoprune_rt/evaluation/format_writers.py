"""Writers of the official data files, so that our own scenes are read by anybody's evaluation code."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from infoprune_rt.errors import InfopruneError
from infoprune_rt.evaluation.dataset import VQAExample
from infoprune_rt.files import write_text


def write_vqav2(examples: Iterable[VQAExample], questions: Path, annotations: Path, data_subtype: str) -> None:
    """VQAv2's two files. Images are ``COCO_<data_subtype>_<12-digit image id>``; ids must be whole numbers."""
    examples = list(examples)
    head = {"data_type": "mscoco", "data_subtype": data_subtype}
    asked = [
        {"image_id": _number(e, "image_id"), "question": e.question, "question_id": _number(e, "question_id")}
        for e in examples
    ]
    answered = [
        {
            "image_id": _number(e, "image_id"),
            "question_id": _number(e, "question_id"),
            "question_type": e.question_type,
            "answer_type": _answer_type(e.majority_answer),
            "multiple_choice_answer": e.majority_answer,
            "answers": [
                {"answer": answer, "answer_confidence": "yes", "answer_id": i} for i, answer in enumerate(e.answers, 1)
            ],
        }
        for e in examples
    ]
    _write(questions, head | {"task_type": "Open-Ended", "questions": asked})
    _write(annotations, head | {"annotations": answered})


def write_textvqa(examples: Iterable[VQAExample], path: Path, dataset_type: str) -> None:
    """TextVQA's file. Images are ``<image id>``."""
    records = [
        {
            "question_id": int(e.question_id) if e.question_id.isdecimal() else e.question_id,
            "image_id": e.image_id,
            "question": e.question,
            "question_type": e.question_type,
            "answers": list(e.answers),
            "set_name": dataset_type,
        }
        for e in examples
    ]
    _write(path, {"dataset_type": dataset_type, "dataset_name": "textvqa", "data": records})


def write_gqa(examples: Iterable[VQAExample], path: Path) -> None:
    """GQA's file: an object keyed by question id, one answer each. Images are ``<image id>``."""
    records = {
        e.question_id: {
            "imageId": e.image_id,
            "question": e.question,
            "answer": e.majority_answer,
            "fullAnswer": e.majority_answer,
            "isBalanced": True,
            "types": {"detailed": e.question_type},
        }
        for e in examples
    }
    _write(path, records)


def _number(example: VQAExample, field: str) -> int:
    value = str(getattr(example, field))
    if not value.isdecimal():
        raise InfopruneError(f"VQAv2's ids are whole numbers, but question {example.question_id} has {field} {value!r}")
    return int(value)


def _answer_type(answer: str) -> str:
    if answer in ("yes", "no"):
        return "yes/no"
    return "number" if answer.isdecimal() else "other"


def _write(path: Path, data: dict[str, Any]) -> None:
    write_text(Path(path), json.dumps(data, ensure_ascii=False) + "\n")
