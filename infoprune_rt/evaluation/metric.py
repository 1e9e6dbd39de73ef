"""VQA accuracy and exact match (method.md section 7).

VQA accuracy gives an answer min(1, n / 3) against each human's answer, n being how many of the *other*
humans said the same, and averages over the humans. Two ways of normalising are in use, and their scores
differ by tenths of a point, so a score always names its mode:

``official``
    the VQA challenge's evaluator: the prediction is normalised in full; the humans' answers lose their
    punctuation, and only if the humans disagree.
``lmms-eval``
    its VQAv2 and TextVQA tasks (version 0.7): both sides in full, always; for TextVQA commas and question
    marks are dropped and a possessive 's is split off beforehand.
"""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import Literal, get_args

from infoprune_rt.errors import InfopruneError
from infoprune_rt.evaluation.contractions import CONTRACTIONS
from infoprune_rt.evaluation.dataset import Family

Mode = Literal["official", "lmms-eval"]
MODES: tuple[str, ...] = get_args(Mode)

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0"} | {word: str(value) for value, word in enumerate(_NUMBER_WORDS)}
_ARTICLES = ("a", "an", "the")
_FULL_STOP = re.compile(r"\.(?!\d)")
_FULL_STOPS_TAKEN = 32  # both evaluators pass re.UNICODE, which is 32, where ``sub`` takes a count
_DIGIT_COMMA = re.compile(r"\d,\d")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def strip_punctuation(text: str) -> str:
    """Punctuation goes where it touches a blank, or everywhere beside "1,000"; else it becomes a blank."""
    everywhere = _DIGIT_COMMA.search(text) is not None
    result = text
    for mark in _PUNCTUATION:
        touches_blank = f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if everywhere or touches_blank else " ")
    return _FULL_STOP.sub("", result, count=_FULL_STOPS_TAKEN)


def plain_words(text: str) -> str:
    """Lower case, number words as digits, articles dropped, apostrophes of contractions restored."""
    words = (_NUMBERS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def normalize(text: str, mode: Mode, family: Family) -> str:
    """A prediction as the mode's evaluator sees it. family: "vqa" (VQAv2) or "text" (TextVQA)."""
    if mode not in MODES:
        raise InfopruneError(f"unknown scoring mode {mode!r}; known are {', '.join(MODES)}")
    if mode == "lmms-eval" and family == "text":
        text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's")
    return plain_words(strip_punctuation(text.replace("\n", " ").replace("\t", " ").strip()))


def vqa_accuracy(prediction: str, answers: Sequence[str], mode: Mode, family: Family) -> float:
    """Accuracy in 0..1 of one prediction against the humans' answers (10 in VQAv2, "vqa", and TextVQA, "text").

    A data set with one answer a question has no "others"; there it is 1 for the same answer and 0 else.
    """
    if not answers:
        raise InfopruneError("a question without answers can't be scored; use a split whose answers are published")
    said = normalize(prediction, mode, family)
    if mode == "lmms-eval":
        heard = [normalize(answer, mode, family) for answer in answers]
    elif len(set(answers)) > 1:
        heard = [strip_punctuation(answer) for answer in answers]
    else:
        heard = list(answers)
    same = [answer == said for answer in heard]
    if len(same) == 1:
        return float(same[0])
    total = sum(same)
    return sum(min(1.0, (total - agrees) / 3) for agrees in same) / len(same)


def exact_match(prediction: str, answer: str) -> float:
    """GQA: 1 if both are the same but for case, punctuation and surrounding blanks, else 0."""
    said, expected = (text.lower().translate(_WITHOUT_PUNCTUATION).strip() for text in (prediction, answer))
    return float(said == expected)
