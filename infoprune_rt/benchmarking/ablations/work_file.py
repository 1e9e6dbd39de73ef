"""Measured rows as JSON lines: each is on disk once it is measured, so that an interrupted run goes on where it was."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infoprune_rt.errors import InfopruneError
from infoprune_rt.files import make_directory, write_text

Row = dict[str, Any]


class WorkFile:
    """The first line says which run the rows belong to; every other line is a row with the key it is found by."""

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Open or begin. Raises InfopruneError if the file belongs to a run with other options, model or data."""
        self.path = path
        self._rows: dict[str, Row] = {}
        make_directory(path.parent)
        if not path.exists():
            write_text(path, json.dumps({"identity": identity}) + "\n")
            return
        head, *lines = self._whole_lines()
        self._check(head.get("identity") if isinstance(head, dict) else None, json.loads(json.dumps(identity)))
        for number, line in enumerate(lines, 2):
            match line:
                case {"key": str(key), "row": dict(row)}:
                    self._rows[key] = row
                case _:
                    raise self._damaged(f"line {number} is no row with its key")

    def row(self, key: Mapping[str, Any]) -> Row | None:
        """The row measured under this key, if it was."""
        return self._rows.get(_name(key))

    def append(self, key: Mapping[str, Any], row: Row) -> None:
        """Keep a row; it is on disk when this returns. Raises ValueError for NaN or infinity, which JSON has not."""
        line = json.dumps({"key": _name(key), "row": row}, allow_nan=False)
        with self.path.open("a") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._rows[_name(key)] = row

    def _whole_lines(self) -> list[Any]:
        """All lines; the torn last one of a killed run is cut off."""
        text = self.path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        if len(whole) < len(text):
            os.truncate(self.path, len(whole))
        try:
            return [json.loads(line) for line in whole.splitlines()] or [{}]
        except ValueError as error:
            raise self._damaged(str(error)) from error

    def _damaged(self, how: str) -> InfopruneError:
        return InfopruneError(f"{self.path} is damaged ({how}); delete it to measure anew")

    def _check(self, theirs: Any, ours: dict[str, Any]) -> None:
        if not isinstance(theirs, dict):
            raise InfopruneError(f"{self.path} is no work file of the ablations; choose another --work")
        for name in sorted(theirs.keys() | ours.keys()):
            if theirs.get(name) != ours.get(name):
                raise InfopruneError(
                    f"{self.path} belongs to a run with another {name} ({theirs.get(name)!r}, now {ours.get(name)!r}); "
                    "give the same options to go on with it, choose another --work, or delete it"
                )


def _name(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)
