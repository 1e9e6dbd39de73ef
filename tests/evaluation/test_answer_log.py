"""Answers on disk: whatever a killed run left, the next one ends with the file of an uninterrupted one."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_vlm import build_dataset

from infoprune_rt.errors import InfopruneError
from infoprune_rt.evaluation.answer_log import AnswerLog
from infoprune_rt.evaluation.answering import Answer
from infoprune_rt.evaluation.dataset import VQADataset

BATCH = 4
RUN = {"model": {"name": "a", "sha256": "abc"}, "max_new_tokens": 5}


@pytest.fixture
def dataset(tmp_path: Path) -> VQADataset:
    """9 questions: batches of 4, 4 and 1."""
    return build_dataset(tmp_path, np.random.default_rng())


def given_to(dataset: VQADataset) -> list[Answer]:
    """One is skipped; one answer has a line break and letters beyond ASCII."""
    texts = ["red\u2028 né\n"] + ["red"] * (len(dataset) - 2)
    answers = [Answer(e.question_id, text) for e, text in zip(dataset, texts, strict=False)]
    return [*answers, Answer(dataset[len(dataset) - 1].question_id, None, "the image is torn")]


def fill(log: AnswerLog, answers: list[Answer]) -> int:
    """Append what is left and close; how many questions were asked."""
    with closing(log):
        for batch in log.left:
            log.append(batch, [answers[i] for i in batch])
    return sum(map(len, log.left))


def test_every_line_is_one_question(dataset: VQADataset, tmp_path: Path) -> None:
    out, answers = tmp_path / "new" / "out.jsonl", given_to(dataset)
    log = AnswerLog(out, dataset, BATCH, "official", RUN)
    assert not out.exists(), "nothing is written before there is something to say"
    assert (fill(log, answers), log.resumed) == (9, 0)
    assert log.answers() == answers
    head, *lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert head == {"run": {**RUN, "batch_size": BATCH, "mode": "official"}}
    by_id = {line.pop("question_id"): line for line in lines}
    for example, answer in zip(dataset, answers, strict=True):
        expected = {
            "family": "vqa",
            "question": example.question,
            "image": example.image_path.name,
            "answer": answer.text,
            "human_answers": list(example.answers),
            "score": None if answer.text is None else float(example.answers[0] == answer.text),
            "mode": "official",
        }
        assert by_id[example.question_id] == (expected if answer.text is not None else {**expected, "why": answer.why})


def test_cut_anywhere_it_resumes_to_the_same_file(dataset: VQADataset, tmp_path: Path) -> None:
    answers = given_to(dataset)
    fill(AnswerLog(tmp_path / "whole", dataset, BATCH, "official", RUN), answers)
    whole = (tmp_path / "whole").read_bytes()
    head = whole.index(b"\n") + 1
    ends = [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for cut in {head, *ends, *random.choices(range(head, len(whole)), k=25)}:
        out = tmp_path / f"cut-{cut}"
        out.write_bytes(whole[:cut])
        log = AnswerLog(out, dataset, BATCH, "official", RUN)
        lines = sum(end <= cut for end in ends) - 1
        assert log.resumed == (9 if lines == 9 else lines // BATCH * BATCH)
        assert fill(log, answers) == 9 - log.resumed
        assert out.read_bytes() == whole
        assert log.answers() == answers


@pytest.mark.parametrize(
    ("other", "saying"),
    [
        ({"run": {**RUN, "model": {"name": "b", "sha256": "def"}}}, "model: there .*'abc'.*, here .*'def'"),
        ({"run": {"model": RUN["model"]}}, "max_new_tokens: there 5, here None"),
        ({"batch_size": 3}, "batch_size: there 4, here 3"),
        ({"mode": "lmms-eval"}, "mode: there official, here lmms-eval"),
    ],
)
def test_another_runs_file_is_refused_and_kept(dataset: VQADataset, tmp_path: Path, other: dict, saying: str) -> None:
    out = tmp_path / "out"
    settings = {"dataset": dataset, "batch_size": BATCH, "mode": "official", "run": RUN}
    fill(AnswerLog(out, **settings), given_to(dataset))
    before = out.read_bytes()
    with pytest.raises(InfopruneError, match=f"belongs to another evaluation \\({saying}"):
        AnswerLog(out, **(settings | other))
    assert out.read_bytes() == before
    renamed = settings | {"run": {**RUN, "model": {"name": "moved", "sha256": "abc"}}}
    with closing(AnswerLog(out, **renamed)) as log:
        assert log.resumed == len(dataset)


def line_of_another_question(lines: list[bytes]) -> list[bytes]:
    return [lines[0], lines[2], lines[1], *lines[3:]]


def line_without_answer(lines: list[bytes]) -> list[bytes]:
    record = {**json.loads(lines[1]), "answer": None}
    return [lines[0], json.dumps(record).encode(), *lines[2:]]


@pytest.mark.parametrize(
    ("damage", "saying"),
    [
        (lambda lines: [b"my shopping list", *lines[1:]], "is there already and holds no evaluation"),
        (lambda lines: [b"[]", *lines[1:]], "is there already and holds no evaluation"),
        (lambda lines: [b'{"run": 3}', *lines[1:]], "is there already and holds no evaluation"),
        (lambda lines: [], "is there already and holds no evaluation"),
        (lambda lines: [lines[0], b"{", *lines[2:]], "line 2: it is no answer"),
        (lambda lines: [lines[0], b"{}", *lines[2:]], "line 2: it is no answer .*family"),
        (line_of_another_question, "line 2: it is not about question"),
        (line_without_answer, "line 2: it must have an answer"),
        (lambda lines: [*lines, lines[-1]], "line 11: there are fewer questions"),
    ],
)
def test_a_file_that_is_no_log_or_was_edited_is_refused_and_kept(
    dataset: VQADataset, tmp_path: Path, damage: Callable[[list[bytes]], list[bytes]], saying: str
) -> None:
    out = tmp_path / "out"
    fill(AnswerLog(out, dataset, BATCH, "official", RUN), given_to(dataset))
    out.write_bytes(b"".join(line + b"\n" for line in damage(out.read_bytes().splitlines())))
    before = out.read_bytes()
    with pytest.raises(InfopruneError, match=saying):
        AnswerLog(out, dataset, BATCH, "official", RUN)
    assert out.read_bytes() == before


HOLD = "import fcntl, sys; f = open(sys.argv[1], 'r+b'); fcntl.flock(f, fcntl.LOCK_EX); print(flush=True); input()"


def test_two_processes_do_not_write_one_file(dataset: VQADataset, tmp_path: Path) -> None:
    out, answers = tmp_path / "out", given_to(dataset)
    late = AnswerLog(out, dataset, BATCH, "official", RUN)
    fill(AnswerLog(out, dataset, BATCH, "official", RUN), answers)
    with pytest.raises(InfopruneError, match="another process has begun"):
        fill(late, answers)
    with subprocess.Popen([sys.executable, "-c", HOLD, out], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(InfopruneError, match="another process is writing"):
            AnswerLog(out, dataset, BATCH, "official", RUN)
        holder.communicate(b"\n")
    assert AnswerLog(out, dataset, BATCH, "official", RUN).answers() == answers


def test_the_data_sets_digest_sees_every_field(dataset: VQADataset) -> None:
    changes = [
        {"question_id": "x"},
        {"family": "text"},
        {"image_path": Path("x.png")},
        {"question": "x ?"},
        {"answers": ("x",)},
    ]
    others = [VQADataset([replace(dataset[0], **change), *dataset[1:]]) for change in changes]
    digests = {data.digest for data in (dataset, dataset[:8], VQADataset(dataset[::-1]), *others)}
    assert len(digests) == 3 + len(changes)
    moved = VQADataset([replace(e, image_path=Path("elsewhere") / e.image_path.name) for e in dataset])
    assert moved.digest == dataset.digest
