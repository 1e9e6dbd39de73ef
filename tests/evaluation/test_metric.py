"""VQA accuracy and exact match: cases worked by hand, and laws."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infoprune_rt.errors import InfopruneError
from infoprune_rt.evaluation.contractions import CONTRACTIONS
from infoprune_rt.evaluation.metric import MODES, exact_match, normalize, strip_punctuation, vqa_accuracy

FAMILIES = ("vqa", "text")
EVALUATORS = [(mode, family) for mode in MODES for family in FAMILIES]
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
@pytest.mark.parametrize(("mode", "family"), EVALUATORS)
def test_by_hand(prediction, answers, expected, mode, family):
    assert vqa_accuracy(prediction, answers, mode, family) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "answers", "official", "lmms_vqa", "lmms_text"),
    [
        # All humans agree: the official evaluator leaves their words as they are, capital letter and article too.
        ("dog", ["the dog"] * 10, 0.0, 1.0, 1.0),
        ("Two", ["two"] * 10, 0.0, 1.0, 1.0),
        # A comma between letters becomes a blank; lmms-eval's TextVQA drops it beforehand.
        ("black,white", ["black, white"] * 9 + ["grey"], 1.0, 1.0, 0.0),
        # The humans disagree: officially they lose their punctuation, but their number words stay.
        ("two!", ["two."] * 9 + ["3"], 0.0, 1.0, 1.0),
        # Officially a trailing mark leaves a blank behind, with which no prediction can agree.
        ("dog", ["dog!"] * 9 + ["cat"], 0.0, 1.0, 1.0),
        # A possessive 's stands apart for lmms-eval's TextVQA only.
        ("dog's", ["dog 's"] * 10, 0.0, 0.0, 1.0),
        ("thats", ["that's"] * 10, 1.0, 1.0, 0.0),
    ],
)
def test_where_the_evaluators_differ(prediction, answers, official, lmms_vqa, lmms_text):
    for family in FAMILIES:
        assert vqa_accuracy(prediction, answers, "official", family) == official
    assert vqa_accuracy(prediction, answers, "lmms-eval", "vqa") == lmms_vqa
    assert vqa_accuracy(prediction, answers, "lmms-eval", "text") == lmms_text


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
        ("." * 40 + "x", "." * 8 + "x"),  # both evaluators take 32 full stops away at most
    ],
)
@pytest.mark.parametrize(("mode", "family"), EVALUATORS)
def test_normalisation_by_hand(text, expected, mode, family):
    assert normalize(text, mode, family) == expected


def test_punctuation_becomes_a_blank_unless_it_touches_one():
    assert strip_punctuation("black/white") == "black white"
    assert strip_punctuation("black / white") == "black  white"
    assert strip_punctuation("1,000-2,000") == "10002000"
    assert strip_punctuation("what?") == "what "


ANSWERS = st.lists(
    st.sampled_from(["red", "Red", "the red", "two", "2", "blue-green", "it's", ""]), min_size=1, max_size=10
)
WORDS = st.lists(
    st.sampled_from([*CONTRACTIONS, "The", "none", "t-shirt", "1,000", "3.5", "dog's", "a.", "?"]), max_size=4
)
TEXTS = st.text(max_size=20) | WORDS.map(" ".join)
PREDICTIONS = TEXTS | st.sampled_from(["red", "2"])


@given(PREDICTIONS, ANSWERS, st.sampled_from(EVALUATORS), st.randoms())
def test_is_a_fraction_and_knows_no_order_of_humans(prediction, answers, evaluator, random):
    value = vqa_accuracy(prediction, answers, *evaluator)
    assert 0 <= value <= 1
    shuffled = list(answers)
    random.shuffle(shuffled)
    assert vqa_accuracy(prediction, shuffled, *evaluator) == pytest.approx(value)


@given(st.integers(0, 10), st.sampled_from(EVALUATORS))
def test_rises_with_agreement(agree, evaluator):
    value = vqa_accuracy("red", ["red"] * agree + ["blue"] * (10 - agree), *evaluator)
    expected = (agree * min(1, max(0, agree - 1) / 3) + (10 - agree) * min(1, agree / 3)) / 10
    assert value == pytest.approx(expected)


@given(PREDICTIONS, ANSWERS.filter(lambda answers: len(answers) > 1), st.sampled_from(EVALUATORS))
def test_one_more_human_who_agrees_never_lowers(prediction, answers, evaluator):
    """From two humans on: one alone has no others to agree with, and is taken at his word instead."""
    joined = [*answers, normalize(prediction, *evaluator)]
    before, after = (vqa_accuracy(prediction, heard, *evaluator) for heard in (answers, joined))
    assert after >= before - 1e-12


@given(TEXTS)
def test_normalising_twice_is_normalising_once(text):
    """Where no step makes work for an earlier one: lmms-eval's TextVQA splits the 's that a contraction brings."""
    for evaluator in EVALUATORS:
        once = normalize(text, *evaluator)
        if evaluator != ("lmms-eval", "text") or "'s" not in once.replace(" 's", ""):
            assert normalize(once, *evaluator) == once
    assert normalize("thats", "lmms-eval", "text") == "that's"
    assert normalize("that's", "lmms-eval", "text") == "that 's"


@given(st.lists(st.sampled_from(["red", "dog", "7", "blue car"]), min_size=1, max_size=3).map(" ".join))
def test_plain_words_are_a_fixed_point(text):
    for evaluator in EVALUATORS:
        assert normalize(text, *evaluator) == text


def test_exact_match_ignores_case_and_punctuation_only():
    assert exact_match(" Left.", "left") == 1.0
    assert exact_match("t-shirt", "tshirt") == 1.0
    assert exact_match("the left", "left") == 0.0
    assert exact_match("two", "2") == 0.0


ENGLISH = st.text(string.ascii_letters + string.digits + " ", max_size=20)


@given(ENGLISH, st.lists(st.tuples(st.integers(0, 20), st.sampled_from(string.punctuation)), max_size=5))
def test_exact_match_sees_neither_case_nor_punctuation(text, marks):
    said = text.swapcase()
    for place, mark in marks:
        said = said[:place] + mark + said[place:]
    assert exact_match(said, text) == exact_match(text, said) == 1.0
    assert exact_match(said + "x", text) == 0.0


@given(TEXTS)
def test_exact_match_of_itself(text):
    assert exact_match(text, text) == 1.0


def test_refuses_no_answers_and_unknown_modes():
    with pytest.raises(InfopruneError, match="without answers"):
        vqa_accuracy("yes", [], "official", "vqa")
    with pytest.raises(InfopruneError, match="official, lmms-eval"):
        vqa_accuracy("yes", ["yes"], "strict", "vqa")
