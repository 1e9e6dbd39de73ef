"""Answers on disk as they are given: JSON lines, one a question, from which an interrupted run resumes.

The first line, ``{"run": {...}}``, says which run the file belongs to. Every other line is one question in the order
of answering (``question_batches``): ``question_id``, ``family``, ``question``, ``image`` (its file's name), ``answer``,
``human_answers``, ``score`` (0..1) and the score's ``mode``. Where the image was skipped, ``answer`` and ``score`` are
null and ``why`` gives the reason.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from infoprune_rt.errors import InfopruneError
from infoprune_rt.evaluation.answering import Answer, question_batches
from infoprune_rt.evaluation.dataset import VQADataset, VQAExample
from infoprune_rt.evaluation.metric import Mode
from infoprune_rt.evaluation.report import score
from infoprune_rt.files import write_text


class AnswerLog:
    """The file of one evaluation: what an earlier run left in it is read at once, the rest is appended.

    run: what the answers depend on besides the images, JSON values by name; a file of another run is refused. Where a
    value is an object with a ``sha256``, that alone decides and the rest is for the reader. A batch that was not
    written whole is asked again as a whole, since batches decide how sums are rounded: so a resumed run ends with the
    file of an uninterrupted one. ``left``: the batches still to be asked; ``resumed``: how many questions are not.
    """

    def __init__(self, path: Path, dataset: VQADataset, batch_size: int, mode: Mode, run: Mapping[str, Any]) -> None:
        self.path, self._dataset, self._mode = Path(path), dataset, mode
        self._run = json.loads(json.dumps({**run, "batch_size": batch_size, "mode": mode}))
        self._given: dict[int, Answer] = {}
        self._file: IO[bytes] | None = None
        self.left = question_batches(dataset, batch_size)
        if self.path.exists():
            self._file = _sole_writer(self.path)
            try:
                self._resume(self._file)
            except BaseException:
                self.close()
                raise
        self.resumed = len(self._given)

    def append(self, batch: Sequence[int], answers: Sequence[Answer]) -> None:
        """Add one batch's answers, on disk when this returns."""
        if self._file is None:
            self._file = self._create()
        records = [_record(self._dataset[i], given, self._mode) for i, given in zip(batch, answers, strict=True)]
        self._file.write("".join(json.dumps(record) + "\n" for record in records).encode())
        self._file.flush()
        os.fsync(self._file.fileno())
        self._given.update(zip(batch, answers, strict=True))

    def answers(self) -> list[Answer]:
        """All answers in the data set's order; every batch that was left has been appended."""
        return [self._given[i] for i in range(len(self._dataset))]

    def close(self) -> None:
        """Let other processes have the file."""
        if self._file is not None:
            self._file.close()

    def _create(self) -> IO[bytes]:
        """Only now, with a first batch to put in: a run that failed before leaves no file."""
        if self.path.exists():
            raise InfopruneError(f"another process has begun to write {self.path}; give another --out")
        write_text(self.path, json.dumps({"run": self._run}) + "\n")
        file = _sole_writer(self.path)
        file.seek(0, os.SEEK_END)
        return file

    def _resume(self, file: IO[bytes]) -> None:
        """Take in all whole batches and cut off what comes after them."""
        self._check_run(file.readline())
        lines, ends, whole = [], [file.tell()], 0
        for line in file:
            if line.endswith(b"\n"):  # else the writer was killed in the middle of it
                lines.append(line)
                ends.append(ends[-1] + len(line))
        if len(lines) > len(self._dataset):
            raise self._damaged(len(self._dataset) + 2, "there are fewer questions")
        for batch in self.left:
            if len(self._given) + len(batch) > len(lines):
                break
            for i in batch:
                number = len(self._given)
                self._given[i] = self._read(number + 2, lines[number], self._dataset[i])
            whole += 1
        self.left = self.left[whole:]
        file.seek(ends[len(self._given)])
        file.truncate()

    def _check_run(self, line: bytes) -> None:
        try:
            theirs = json.loads(line)["run"]
            pairs = [(key, theirs.get(key), self._run.get(key)) for key in {**theirs, **self._run}]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InfopruneError(f"{self.path} is there already and holds no evaluation; give another --out") from error
        for key, their, our in pairs:
            if _deciding(their) != _deciding(our):
                raise InfopruneError(
                    f"{self.path} belongs to another evaluation ({key}: there {their}, here {our}); give another "
                    "--out, or the options it was begun with"
                )

    def _read(self, number: int, line: bytes, example: VQAExample) -> Answer:
        try:
            record = json.loads(line)
            about, text, why = (record["family"], record["question_id"]), record["answer"], record.get("why")
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(number, f"it is no answer ({error!r})") from error
        if about != (example.family, example.question_id):
            raise self._damaged(number, f"it is not about question {example.question_id}")
        if not isinstance(why if text is None else text, str):
            raise self._damaged(number, "it must have an answer, or a reason why not")
        return Answer(example.question_id, text, why)

    def _damaged(self, number: int, problem: str) -> InfopruneError:
        return InfopruneError(f"{self.path}, line {number}: {problem}; delete the file, or this line and all after it")


def _deciding(value: Any) -> Any:
    return value["sha256"] if isinstance(value, dict) and "sha256" in value else value


def _record(example: VQAExample, given: Answer, mode: Mode) -> dict[str, Any]:
    said = {} if given.text is not None else {"why": given.why}
    return {
        "question_id": example.question_id,
        "family": example.family,
        "question": example.question,
        "image": example.image_path.name,
        "answer": given.text,
        "human_answers": example.answers,
        "score": None if given.text is None else score(example, given.text, mode),
        "mode": mode,
        **said,
    }


def _sole_writer(path: Path) -> IO[bytes]:
    """The file, open for reading and writing, for this process alone; the lock ends with the process."""
    file = path.open("r+b")
    try:
        import fcntl  # not at the top: the package must import on Windows, too

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.close()
        raise InfopruneError(f"another process is writing {path}; wait until it ends, or give another --out") from error
    except (ImportError, OSError):  # a file system without locks
        pass
    return file
