"""Scenes and questions: every answer must follow from what was drawn."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infoprune_rt.demo.handwriting import read_handwriting, write_handwriting
from infoprune_rt.demo.scenes import COLORS, MARGIN, SIZE, Digit, Scene, Split, ask, draw_scene, handwriting


def test_no_handwriting_is_on_both_sides() -> None:
    train, test = handwriting("train")[0], handwriting("test")[0]
    assert len(train) == 1400
    assert len(test) == 397
    seen = {image.tobytes() for image in train}
    assert not any(image.tobytes() in seen for image in test)


@given(seed=st.integers(0, 10**6), crowded=st.booleans())
@settings(max_examples=30, deadline=None)
def test_a_scene_shows_what_it_says(seed: int, crowded: bool) -> None:
    picture, scene = draw_scene(np.random.default_rng(seed), "test", crowded)
    assert picture.shape == (SIZE, SIZE, 3)
    assert picture.dtype == np.uint8
    again, same = draw_scene(np.random.default_rng(seed), "test", crowded)
    assert np.array_equal(picture, again)
    assert scene == same
    for digit in scene.digits:
        assert 0 <= digit.x < SIZE
        assert 0 <= digit.y < SIZE
        reach = int(digit.size / 2)
        patch = picture[
            max(0, int(digit.y) - reach) : int(digit.y) + reach, max(0, int(digit.x) - reach) : int(digit.x) + reach
        ].astype(int)
        distance = np.abs(patch - np.array(COLORS[digit.color])).max(axis=-1)
        assert (distance < 45).sum() > 20, f"no {digit.color} ink around {digit}"


@given(seed=st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_answers_follow_from_the_scene(seed: int) -> None:
    rng = np.random.default_rng(seed)
    _, scene = draw_scene(rng, "test")
    questions = ask(rng, scene)
    assert len({question.text for question in questions}) == len(questions)
    assert all(question.answer == _answer(question.text, scene) for question in questions)


def _answer(text: str, scene: Scene) -> str:
    """An independent reader of the questions' wording."""
    words = text.removesuffix("?").split()
    match words:
        case ["How", "many", *_]:
            return str(len(scene.digits))
        case ["What", "digit", "is", color]:
            return str(_the(scene, color).value)
        case ["What", "color", "is", "the", value]:
            return _the(scene, value).color
        case ["Is", "there", "a", color, "digit"]:
            return _said(any(digit.color == color for digit in scene.digits))
        case ["Is", "there", "a", "colored", value]:
            return _said(any(str(digit.value) == value for digit in scene.digits))
        case ["What", "number", *_]:
            return "".join(str(digit.value) for digit in sorted(scene.sign, key=lambda digit: digit.x))
        case ["What", "is", "the", ("first" | "last") as which, *_]:
            return scene.number[0 if which == "first" else -1]
        case ["Is", "the", first, "the", "same", "color", "as", "the", second]:
            return _said(_the(scene, first).color == _the(scene, second).color)
        case ["What", "color", "is", "the", extreme, "digit"]:
            return _extreme(scene, extreme).color
        case ["What", "is", "the", extreme, "colored", "digit"]:
            return str(_extreme(scene, extreme).value)
    first, rest = _named(words[2:])
    second, _ = _named(rest[rest.index("the", 2 if rest[0] == "to" else 0) + 1 :])
    a, b = _the(scene, first), _the(scene, second)
    if rest[0] == "to":
        assert abs(a.x - b.x) >= MARGIN
        return _said(a.x < b.x if rest[2] == "left" else a.x > b.x)
    assert abs(a.y - b.y) >= MARGIN
    return _said(a.y < b.y if rest[0] == "above" else a.y > b.y)


def _named(words: list[str]) -> tuple[str, list[str]]:
    return words[0], words[2:] if words[1:2] == ["digit"] else words[1:]


def _the(scene: Scene, name: str) -> Digit:
    (only,) = [digit for digit in scene.digits if name in (digit.color, str(digit.value))]
    return only


def _extreme(scene: Scene, word: str) -> Digit:
    axis, sign = {"leftmost": ("x", 1), "rightmost": ("x", -1), "topmost": ("y", 1), "bottommost": ("y", -1)}[word]
    return min(scene.digits, key=lambda digit: sign * getattr(digit, axis))


def _said(truth: bool) -> str:
    return "yes" if truth else "no"


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_official_files_hold_every_question(tmp_path, split: Split) -> None:
    write_handwriting(tmp_path / "data", split, scenes=5, seed=3)
    dataset = read_handwriting(tmp_path / "data")
    assert len(dataset) == 5 * 8
    assert len(dataset.image_paths) == 5
    assert {example.family for example in dataset} == {"vqa", "text", "relations"}
    assert all(len(example.answers) == (1 if example.family == "relations" else 10) for example in dataset)
