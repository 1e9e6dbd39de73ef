"""Files that are either whole or absent: written aside, flushed, then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from infoprune_rt.errors import InfopruneError


def _told(path: Path, error: OSError) -> InfopruneError:
    return InfopruneError(f"could not write {path}: {error.strerror or error}; nothing was left behind")


def make_directory(path: Path) -> None:
    """``path`` and its parents, unless they are there."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InfopruneError(f"could not make the directory {path}: {error.strerror}; choose another place") from error


def write_file(path: Path, fill: Callable[[Path], None]) -> None:
    """Let ``fill`` write a temporary neighbour of ``path``, then put it in place atomically."""
    path = Path(path)
    make_directory(path.parent)
    try:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise _told(path, error) from error
    os.close(handle)
    aside = Path(name)
    try:
        fill(aside)
        with aside.open("rb") as written:
            os.fsync(written.fileno())
        aside.chmod(0o644)
        aside.replace(path)
    except OSError as error:
        raise _told(path, error) from error
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """``write_file`` for a short text."""

    def fill(aside: Path) -> None:
        aside.write_text(text)

    write_file(path, fill)


@contextmanager
def new_directory(path: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty directory beside ``path``; on success it becomes ``path``, else it vanishes."""
    path = Path(path)
    if path.exists() and not overwrite:
        raise InfopruneError(f"{path} exists already; choose another place or ask to overwrite it")
    make_directory(path.parent)
    try:
        aside = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as error:
        raise _told(path, error) from error
    try:
        yield aside
        aside.chmod(0o755)
        if path.exists():
            old = aside.with_name(aside.name + ".old")
            path.rename(old)
            try:
                aside.rename(path)
            except OSError:
                old.rename(path)
                raise
            shutil.rmtree(old)
        else:
            aside.rename(path)
    except OSError as error:
        raise _told(path, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
