"""Where a data set's images lie."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from infoprune_rt.errors import InfopruneError
from infoprune_rt.evaluation.images import OnCorrupt
from infoprune_rt.evaluation.official import WHERE_IMAGES

_NAMED = 3  # how many missing pictures a complaint names

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


def require_images(paths: Sequence[Path], on_corrupt: OnCorrupt | None) -> None:
    """Refuse pictures that are not there, by number and first names; some may be, where they are to be skipped.

    on_corrupt: None where a command cannot skip any, so that none is told to.
    """
    there = {path for folder in {path.parent for path in paths} for path in folder.iterdir()}
    missing = [path for path in paths if path not in there]
    if not missing or (on_corrupt == "skip" and len(missing) < len(paths)):
        return
    names = ", ".join(path.name for path in missing[:_NAMED]) + (", ..." if len(missing) > _NAMED else "")
    rest = "" if on_corrupt is None or len(missing) == len(paths) else ", or skip them (--on-corrupt skip)"
    raise InfopruneError(
        f"{missing[0].parent} lacks {len(missing)} of the {len(paths)} pictures that the questions name: {names}; "
        f"complete the folder ({WHERE_IMAGES}){rest}"
    )
