"""VQA accuracy and exact match: cases worked by hand, and laws."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infoprune_rt.errors import InfopruneError
from infoprune_rt.evaluation.metric import MODES, exact_match, normalize, strip_punctuation, vqa_accuracy

TEN = ["2"] * 3 + ["two dogs"] * 7


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        ("yes", ["yes"] * 10, 1.0),
        ("no", ["yes"] * 10, 0.0),
        # One agrees: for that one no other does; for the nine others one of three needed.
        ("down", ["down"] + ["table"] * 9, 9 * (1 / 3) / 10),
        # Two agree: two times 1/3, eight times 2/3.
        ("down", ["down"] * 2 + ["table"] * 8, (2 / 3 + 8 * 2 / 3) / 10),
        # Three agree: three times 2/3, seven times 1.
        ("down", ["down"] * 3 + ["table"] * 7, (3 * 2 / 3 + 7) / 10),
        ("down", ["down"] * 4 + ["table"] * 6, 1.0),
        ("Two", TEN, 0.9),
        ("The dog.", ["dog"] * 4 + ["cat"] * 6, 1.0),
        ("red", ["red"], 1.0),
        ("red", ["blue"], 0.0),
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_by_hand(prediction, answers, expected, mode):
    assert vqa_accuracy(prediction, answers, mode) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "answers", "official", "lmms"),
    [
        # All humans agree: the official evaluator leaves their words as they are, capital letter and article too.
        ("dog", ["the dog"] * 10, 0.0, 1.0),
        ("Two", ["two"] * 10, 0.0, 1.0),
        # The official evaluator makes a blank of a comma between letters; lmms-eval drops it beforehand.
        ("black,white", ["black, white"] * 9 + ["grey"], 1.0, 0.0),
        # The humans disagree: they lose their punctuation, but their number words stay.
        ("two!", ["two."] * 9 + ["3"], 0.0, 1.0),
        ("dog's", ["dog 's"] * 10, 0.0, 1.0),
    ],
)
def test_where_the_modes_differ(prediction, answers, official, lmms):
    assert vqa_accuracy(prediction, answers, "official") == official
    assert vqa_accuracy(prediction, answers, "lmms-eval") == lmms


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Cat", "cat"),
        ("none", "0"),
        ("Ten apples.", "10 apples"),
        ("1,000", "1000"),
        ("t-shirt", "t shirt"),
        ("3.5", "3.5"),
        ("U.S.A.", "usa"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("yes\n", "yes"),
        ("a\tb!", "b"),
        ("hm, yes?", "hm yes"),
    ],
)
@pytest.mark.parametrize("mode", MODES)
def test_normalisation_by_hand(text, expected, mode):
    assert normalize(text, mode) == expected


def test_punctuation_becomes_a_blank_unless_it_touches_one():
    assert strip_punctuation("black/white") == "black white"
    assert strip_punctuation("black / white") == "black  white"
    assert strip_punctuation("1,000-2,000") == "10002000"
    assert strip_punctuation("what?") == "what "


ANSWERS = st.lists(
    st.sampled_from(["red", "Red", "the red", "two", "2", "blue-green", "it's", ""]), min_size=1, max_size=10
)
TEXTS = st.text(max_size=20)


@given(TEXTS | st.sampled_from(["red", "2"]), ANSWERS, st.sampled_from(MODES), st.randoms())
def test_is_a_fraction_and_knows_no_order_of_humans(prediction, answers, mode, random):
    value = vqa_accuracy(prediction, answers, mode)
    assert 0 <= value <= 1
    shuffled = list(answers)
    random.shuffle(shuffled)
    assert vqa_accuracy(prediction, shuffled, mode) == pytest.approx(value)


@given(st.integers(0, 10), st.sampled_from(MODES))
def test_rises_with_agreement(agree, mode):
    def value(n):
        return vqa_accuracy("red", ["red"] * n + ["blue"] * (10 - n), mode)

    assert value(agree) == pytest.approx(
        (agree * min(1, max(0, agree - 1) / 3) + (10 - agree) * min(1, agree / 3)) / 10
    )


@given(st.lists(st.sampled_from(["red", "dog", "7", "blue car"]), min_size=1, max_size=3).map(" ".join))
def test_plain_words_are_a_fixed_point(text):
    for mode in MODES:
        assert normalize(text, mode) == text


def test_exact_match_ignores_case_and_punctuation_only():
    assert exact_match(" Left.", "left") == 1.0
    assert exact_match("t-shirt", "tshirt") == 1.0
    assert exact_match("the left", "left") == 0.0
    assert exact_match("two", "2") == 0.0


@given(TEXTS)
def test_exact_match_of_itself(text):
    assert exact_match(text, text) == 1.0


def test_refuses_no_answers_and_unknown_modes():
    with pytest.raises(InfopruneError, match="without answers"):
        vqa_accuracy("yes", [], "official")
    with pytest.raises(InfopruneError, match="official, lmms-eval"):
        vqa_accuracy("yes", ["yes"], "strict")
