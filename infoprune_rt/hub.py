"""Where a model's files are: a local directory, or the Hugging Face cache for a hub id.

Of a hub model the small files come first; weights are fetched file by file when they are asked for, all
at the commit that the first look found, so that a push in between cannot mix two versions. Within one
process a hub id stands for that commit from then on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from infoprune_rt.errors import InfopruneError
from infoprune_rt.files import recover

CONFIG_NAME = "config.json"
SMALL_FILES = ["*.json", "*.txt", "*.model", "*.jinja"]  # configs, indices, tokenizer and processor; no weights
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


_snapshots: dict[str, Path] = {}  # by hub id; a snapshot's directory is named by its commit


def resolve_model_dir(path_or_hub_id: str | Path) -> Path:
    """The local directory of a model. A hub id's is in the Hugging Face cache, at first without weights (``fetch``)."""
    directory = Path(path_or_hub_id)
    if not directory.is_dir():
        recover(directory)
    if not directory.is_dir():
        directory = _from_hub(str(path_or_hub_id))
    if not (directory / CONFIG_NAME).is_file():
        raise InfopruneError(f"{directory} has no {CONFIG_NAME}; name the directory of a Hugging Face checkpoint")
    return directory


def fetch(directory: Path, names: Iterable[str]) -> None:
    """Have these files of a hub model in its directory, as far as its commit has them.

    A directory that did not come from a hub id is left as it is.
    """
    missing = sorted({name for name in names if not (directory / name).is_file()})
    for hub_id, snapshot in _snapshots.items():
        if snapshot == directory and missing:
            _download(hub_id, missing, directory.name)


def is_snapshot(directory: Path) -> bool:
    """Whether a directory belongs to a hub id of this process, so that files which were not fetched may be absent."""
    return directory in _snapshots.values()


def _from_hub(name: str) -> Path:
    if not HUB_ID.fullmatch(name):
        raise InfopruneError(
            f"no such model: {name} is neither a directory nor a hub id such as Qwen/Qwen2-VL-2B-Instruct"
        )
    if name not in _snapshots:
        _snapshots[name] = _download(name, SMALL_FILES)
    return _snapshots[name]


def _download(name: str, files: list[str], commit: str | None = None) -> Path:
    try:
        return Path(snapshot_download(name, revision=commit, allow_patterns=files))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if commit is None:
            told = f"no such model: {name} is no directory here, and the hub did not give it ({reason})"
        else:
            told = f"the hub did not give {files[0]} of {name} at commit {commit} ({reason}); try again"
        raise InfopruneError(told) from error
