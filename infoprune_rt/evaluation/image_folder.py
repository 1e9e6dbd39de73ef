"""Where a data set's images lie."""

from __future__ import annotations

import os
from pathlib import Path

from infoprune_rt.errors import InfopruneError

SUFFIXES = (".jpg", ".jpeg", ".png")


class ImageFolder:
    """A flat folder of images, listed once: a lookup asks no file system, and no id can lead out of it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        try:
            self._names = frozenset(entry.name for entry in directory.iterdir())
        except OSError as error:
            raise InfopruneError(f"can't list the image folder {directory}: {error.strerror}") from error

    def find(self, *stems: str) -> Path:
        """The first of the names that is there; else the first name there could be (reading it will complain)."""
        candidates = [stem + suffix for stem in stems for suffix in SUFFIXES]
        found = next((name for name in candidates if name in self._names), candidates[0].replace(os.sep, "_"))
        return self.directory / found
