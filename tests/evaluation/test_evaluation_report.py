"""Accuracy by family."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_vlm import build_dataset, build_model, build_processor

from infoprune_rt.errors import InfopruneError
from infoprune_rt.evaluation.answering import Answer, answer
from infoprune_rt.evaluation.dataset import VQADataset, VQAExample
from infoprune_rt.evaluation.report import accuracy, evaluate, score


def _example(number: int, family: str, answers: tuple[str, ...]) -> VQAExample:
    return VQAExample(str(number), "0", Path("0.png"), "What?", answers, family)


DATASET = VQADataset(
    [
        _example(0, "relations", ("left",)),
        _example(1, "vqa", ("2",) * 3 + ("two",) * 7),
        _example(2, "vqa", ("red",) * 10),
        _example(3, "relations", ("yes",)),
        _example(4, "relations", ("no",)),
    ]
)


def test_by_family_and_over_all_questions():
    said = ["Left.", "two", "blue", "no", "no"]
    given = [Answer(e.question_id, text) for e, text in zip(DATASET, said, strict=True)]
    result = accuracy(DATASET, given, "official")
    assert result == {
        "vqa": pytest.approx(45.0),  # .9 (three others said "2") and 0
        "relations": pytest.approx(200 / 3),
        "overall": pytest.approx(100 * (1 + 0.9 + 0 + 0 + 1) / 5),
        "mode": "official",
        "questions": 5,
        "skipped": 0,
    }


def test_relations_need_the_exact_answer():
    assert score(DATASET[0], "to the left", "official") == 0.0
    assert score(DATASET[1], "the 2", "official") == pytest.approx(0.9)


def test_skipped_questions_count_nowhere_but_by_number():
    given = [Answer(e.question_id, "left" if i == 0 else None) for i, e in enumerate(DATASET)]
    result = accuracy(DATASET, given, "lmms-eval")
    assert result == {"relations": 100.0, "overall": 100.0, "mode": "lmms-eval", "questions": 1, "skipped": 4}
    with pytest.raises(InfopruneError, match="5 skipped"):
        accuracy(DATASET, [Answer(e.question_id, None) for e in DATASET], "official")


def test_answers_in_another_order_are_refused():
    given = [Answer(e.question_id, "yes") for e in DATASET]
    with pytest.raises(InfopruneError, match="question 4 stands where 0"):
        accuracy(DATASET, given[::-1], "official")


def test_evaluate_scores_what_the_model_says(tmp_path):
    """Told its own answers as the truth the model has them all right; told others, none."""
    model, processor = build_model(), build_processor()
    dataset = build_dataset(tmp_path, np.random.default_rng())
    said = [a.text for a in answer(model, processor, dataset, 4, progress=False)]
    for suffix, expected in (("", 100.0), ("x", 0.0)):
        told = VQADataset(
            [
                VQAExample(e.question_id, e.image_id, e.image_path, e.question, (text + suffix,), "relations")
                for e, text in zip(dataset, said, strict=True)
            ]
        )
        assert evaluate(model, processor, told, batch_size=4, progress=False)["overall"] == expected
