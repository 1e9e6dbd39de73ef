"""Directories that are whole or absent, whenever the process that writes them is killed."""

from __future__ import annotations

import os
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from infoprune_rt import files
from infoprune_rt.errors import InfopruneError
from infoprune_rt.files import new_directory, recover
from infoprune_rt.hub import resolve_model_dir

NEVER = 99


def write(path: Path, text: str) -> None:
    with new_directory(path, overwrite=True) as folder:
        (folder / "config.json").write_text(text)


def in_child(act: Callable[[], None]) -> int:
    """Runs ``act`` in a child process, which does not come back from it; returns the child's id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forking beside threads; the child uses none
        child = os.fork()
    if child == 0:
        try:
            act()
        finally:
            os._exit(0)
    return child


def killed_at(step: int, path: Path, text: str, *, exchange: bool) -> bool:
    """Writes ``path`` in a process that is killed before its ``step``-th change of a name; False if it had fewer."""
    left = step

    def counted(change: Callable[..., Any]) -> Callable[..., Any]:
        def act(*args: Any, **kwargs: Any) -> Any:
            nonlocal left
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            left -= 1
            return change(*args, **kwargs)

        return act

    def act() -> None:
        files._exchange = counted(files._exchange if exchange else lambda *_: False)
        Path.rename = counted(Path.rename)  # type: ignore[method-assign]
        shutil.rmtree = counted(shutil.rmtree)  # type: ignore[assignment]
        write(path, text)

    status = os.waitpid(in_child(act), 0)[1]
    return os.WIFSIGNALED(status)


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("old", ["old", None])
def test_a_kill_leaves_the_old_or_the_new_directory(tmp_path: Path, exchange: bool, old: str | None) -> None:
    steps, seen = 0, []
    while True:
        out = tmp_path / str(steps) / "out"
        if old is not None:
            write(out, old)
        else:
            out.parent.mkdir()
        if not killed_at(steps, out, "new", exchange=exchange):
            break
        recover(out)
        found = (out / "config.json").read_text() if out.exists() else None
        assert found in (old, "new")
        seen.append(found)
        if out.exists():
            assert resolve_model_dir(out) == out
        write(out, "newer")
        assert (out / "config.json").read_text() == "newer"
        assert [path.name for path in out.parent.iterdir()] == ["out"]
        steps += 1
    assert steps >= 2
    assert seen == sorted(seen, key=lambda found: found == "new")
    assert {old, "new"} == set(seen)


def test_the_hidden_old_directory_comes_back_when_it_is_read(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, "old")
    assert killed_at(2, out, "new", exchange=False)
    assert not out.exists()
    assert resolve_model_dir(out) == out
    assert (out / "config.json").read_text() == "old"
    with pytest.raises(InfopruneError, match="exists already"), new_directory(out):
        pass


def test_a_killed_filling_is_swept_and_nothing_else_is(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def die() -> None:
        with new_directory(out) as folder:
            (folder / "half").write_text("")
            os.kill(os.getpid(), signal.SIGKILL)

    os.waitpid(in_child(die), 0)
    others = [tmp_path / name for name in (".out.mine", ".output.infoprune-abc", "out.infoprune-abc", ".infoprune-abc")]
    for other in others:
        other.mkdir()
    assert len(list(tmp_path.glob(".out.infoprune-*"))) == 2
    write(out, "new")
    assert sorted(tmp_path.iterdir()) == sorted([*others, out])


@contextmanager
def writing_elsewhere(path: Path, text: str) -> Iterator[Callable[[], None]]:
    """A child in the middle of writing ``path``; calling what is yielded lets it finish."""
    began, go_on = os.pipe(), os.pipe()

    def act() -> None:
        with new_directory(path, overwrite=True) as folder:
            (folder / "config.json").write_text(text)
            os.write(began[1], b".")
            os.read(go_on[0], 1)

    child = in_child(act)
    os.read(began[0], 1)
    try:
        yield lambda: (os.write(go_on[1], b"."), os.waitpid(child, 0), None)[2]
    finally:
        for end in (*began, *go_on):
            os.close(end)


def test_a_living_writer_is_waited_for(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with writing_elsewhere(out, "first") as finish:
        aside = set(tmp_path.iterdir())
        recover(out)
        assert set(tmp_path.iterdir()) == aside
        second = Thread(target=write, args=(out, "second"))
        second.start()
        second.join(0.3)
        assert second.is_alive()
        assert set(tmp_path.iterdir()) == aside
        finish()
        second.join(30)
    assert (out / "config.json").read_text() == "second"
    assert list(tmp_path.iterdir()) == [out]


def test_an_error_leaves_nothing_but_the_old(tmp_path: Path) -> None:
    out = tmp_path / "out"
    write(out, "old")

    def write_to_a_full_disk() -> None:
        with new_directory(out, overwrite=True) as folder:
            (folder / "half").write_text("")
            raise OSError(28, "No space left on device")

    with pytest.raises(InfopruneError, match=r"could not write .*out: No space left"):
        write_to_a_full_disk()
    assert list(tmp_path.iterdir()) == [out]
    assert (out / "config.json").read_text() == "old"
