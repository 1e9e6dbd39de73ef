"""The command line run in this process, and small random models and questions for it, made once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cli_models import MODELS, questions_of, save_model

from infoprune_rt.cli import main
from infoprune_rt.demo.handwriting import write_handwriting


@dataclass(frozen=True)
class Run:
    """One call of the command line."""

    status: int
    out: str
    err: str

    def json(self) -> dict[str, Any]:
        """The one JSON object of a successful call, which printed nothing else."""
        assert (self.status, self.err) == (0, "")
        value = json.loads(self.out)
        assert isinstance(value, dict)
        return value

    def sentence(self) -> str:
        """The one sentence of a refused call, which printed nothing else."""
        assert (self.status, self.out) == (2, ""), self
        assert self.err.startswith("infoprune: ")
        assert self.err.count("\n") == 1
        assert self.err.endswith("\n")
        return self.err.removeprefix("infoprune: ").removesuffix("\n")


Cli = Callable[..., Run]


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    monkeypatch.setenv("COLUMNS", "160")  # so that no table is cut

    def run(*args: object) -> Run:
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(arg) for arg in args])
        printed = capfd.readouterr()
        assert isinstance(end.value.code, int)
        return Run(end.value.code, printed.out, printed.err)

    return run


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of dense checkpoints with their processors, by name."""
    folder = tmp_path_factory.mktemp("models")
    for name in MODELS:
        save_model(name, folder / name)
    return {name: folder / name for name in MODELS}


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six pictures with questions in all three official formats."""
    folder = tmp_path_factory.mktemp("handwriting") / "scenes"
    write_handwriting(folder, "train", scenes=6, seed=0)
    return folder


@pytest.fixture(scope="session")
def questions(scenes: Path) -> tuple[str, ...]:
    """The options that name all three files, the annotations and the pictures."""
    return questions_of(scenes)
