"""Files that are either whole or absent: written aside, flushed, then renamed."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from infoprune_rt.errors import InfopruneError

_OLD = ".old"  # a directory that another is about to replace
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h


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
    """Yield an empty directory beside ``path``; on success it becomes ``path``, else it vanishes.

    Waits while another process writes ``path``. A process killed here leaves hidden neighbours of ``path``; the
    next write takes them away, and ``recover`` brings the old directory back should ``path`` be gone.
    """
    path = Path(path)
    make_directory(path.parent)
    try:
        with _sole_writer(path) as alone:
            if alone:
                _sweep(path)
            if path.exists() and not overwrite:
                raise InfopruneError(f"{path} exists already; choose another place or ask to overwrite it")
            aside = Path(tempfile.mkdtemp(prefix=_neighbour(path), dir=path.parent))
            try:
                yield aside
                aside.chmod(0o755)
                _put_in_place(aside, path)
            finally:
                shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        raise _told(path, error) from error


def recover(path: Path) -> None:
    """Bring back the old directory if a process was killed while it put a new one in its place."""
    path = Path(path)
    if path.exists() or not path.parent.is_dir():
        return
    if any(entry.name.endswith(_OLD) for entry in _neighbours(path)):
        with _sole_writer(path) as alone:
            if alone:
                _sweep(path)


def _neighbour(path: Path) -> str:
    """How the names of all hidden neighbours of ``path`` begin that are made here."""
    return f".{path.name}.infoprune-"


def _neighbours(path: Path) -> list[Path]:
    return [entry for entry in path.parent.iterdir() if entry.name.startswith(_neighbour(path)) and entry.is_dir()]


def _sweep(path: Path) -> None:
    """Clear away what killed writers left; the caller is the only writer."""
    for entry in _neighbours(path):
        if entry.name.endswith(_OLD) and not path.exists():
            entry.rename(path)
        else:
            shutil.rmtree(entry, ignore_errors=True)


@contextmanager
def _sole_writer(path: Path) -> Iterator[bool]:
    """Wait until no other process writes ``path``. The lock ends with the process, however that ends.

    Yields False on file systems without locks, where nothing is known of other writers.
    """
    lock = path.with_name(_neighbour(path) + "lock")
    handle, alone = _locked(lock)
    try:
        yield alone
    finally:
        lock.unlink(missing_ok=True)
        os.close(handle)


def _locked(lock: Path) -> tuple[int, bool]:
    while True:
        handle = os.open(lock, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            import fcntl  # not at the top: the package must import on Windows, too

            fcntl.flock(handle, fcntl.LOCK_EX)
        except (ImportError, OSError):
            return handle, False
        if lock.exists() and lock.stat().st_ino == os.fstat(handle).st_ino:
            return handle, True
        os.close(handle)  # its owner took it away while this process waited


def _put_in_place(aside: Path, path: Path) -> None:
    """``aside`` becomes ``path``; what was there becomes ``aside`` or is removed."""
    if not path.exists():
        aside.rename(path)
    elif not _exchange(aside, path):
        old = aside.with_name(aside.name + _OLD)
        path.rename(old)
        try:
            aside.rename(path)
        except OSError:
            old.rename(path)
            raise
        shutil.rmtree(old)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two directories in one step; False where kernel or file system cannot."""
    try:
        swap = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):  # not Linux, or an old C library
        return False
    return bool(swap(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0)
