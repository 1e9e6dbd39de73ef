"""Where a model's files are: a local directory, or the Hugging Face cache for a hub id."""

from __future__ import annotations

import re
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError

from infoprune_rt.errors import InfopruneError

CONFIG_NAME = "config.json"
# Config, weights, tokenizer and processor files; above all nothing pickled.
HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def resolve_model_dir(path_or_hub_id: str | Path) -> Path:
    """The local directory of a model; a hub id is downloaded into (or found in) the Hugging Face cache."""
    directory = Path(path_or_hub_id)
    if not directory.is_dir():
        directory = _from_hub(str(path_or_hub_id))
    if not (directory / CONFIG_NAME).is_file():
        raise InfopruneError(f"{directory} has no {CONFIG_NAME}; name the directory of a Hugging Face checkpoint")
    return directory


def _from_hub(name: str) -> Path:
    if not HUB_ID.fullmatch(name):
        raise InfopruneError(
            f"no such model: {name} is neither a directory nor a hub id such as Qwen/Qwen2-VL-2B-Instruct"
        )
    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InfopruneError(
            f"no such model: {name} is no directory here, and the hub did not give it ({reason})"
        ) from error
