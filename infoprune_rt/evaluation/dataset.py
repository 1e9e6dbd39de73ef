"""A visual question answering data set in memory: questions and answers; images stay on disk."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, overload

Family = Literal["vqa", "text", "relations"]
FAMILIES: tuple[Family, ...] = ("vqa", "text", "relations")


@dataclass(frozen=True)
class VQAExample:
    """One question. ``answers`` holds 10 humans' answers (VQAv2, TextVQA) or one (GQA); ids are text
    whatever type the file gives them."""

    question_id: str
    image_id: str
    image_path: Path
    question: str
    answers: tuple[str, ...]
    family: Family
    question_type: str = ""

    @property
    def majority_answer(self) -> str:
        """The most frequent answer; among equals the one given first."""
        return Counter(self.answers).most_common(1)[0][0]


class VQADataset(Sequence[VQAExample]):
    """Examples in file order. ``a + b`` joins two data sets, ``dataset[:100]`` is a smaller one."""

    def __init__(self, examples: Sequence[VQAExample]) -> None:
        self.examples = tuple(examples)

    def __len__(self) -> int:
        return len(self.examples)

    @overload
    def __getitem__(self, index: int) -> VQAExample: ...

    @overload
    def __getitem__(self, index: slice) -> VQADataset: ...

    def __getitem__(self, index: int | slice) -> VQAExample | VQADataset:
        return VQADataset(self.examples[index]) if isinstance(index, slice) else self.examples[index]

    def __iter__(self) -> Iterator[VQAExample]:
        return iter(self.examples)

    def __add__(self, other: VQADataset) -> VQADataset:
        return VQADataset(self.examples + other.examples)

    @property
    def image_paths(self) -> list[Path]:
        """Every image once, in order of first use."""
        return list(dict.fromkeys(example.image_path for example in self.examples))

    @property
    def digest(self) -> str:
        """SHA-256 over every question in order, with its answers and the name of its image."""
        found = hashlib.sha256()
        for e in self.examples:
            fields = (e.family, e.question_id, e.image_path.name, e.question, e.answers)
            found.update(json.dumps(fields).encode())
        return found.hexdigest()
