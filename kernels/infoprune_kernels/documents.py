"""Tables in documents: written by the programs that make the figures, never by hand."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of the same keys, which become the head; numbers stand on the right."""
    head = [name.replace("_", " ") for name in rows[0]]
    rule = ["---:" if isinstance(value, int | float) else "---" for value in rows[0].values()]
    lines = [head, rule, *([str(value) for value in row.values()] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def fill(document: Path, name: str, text: str) -> None:
    """Put the text between the document's marks of that name.

    Raises:
        ValueError: the document has no such marks.
    """
    marks = re.compile(f"(<!-- table: {name} -->\n).*?(<!-- end: {name} -->)", re.DOTALL)
    old = document.read_text()
    if not marks.search(old):
        raise ValueError(f"{document} has no marks for the table '{name}'")
    document.write_text(marks.sub(lambda found: found[1] + text + found[2], old))
