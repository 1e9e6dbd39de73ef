"""A benchmark's result file: what was measured, on what, by which command, and what it was meant to show."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from infoprune_rt.benchmarking.environment import command, environment
from infoprune_rt.benchmarking.gpu.device import describe, state
from infoprune_rt.benchmarking.gpu.measuring import Findings
from infoprune_rt.benchmarking.targets import Target
from infoprune_rt.errors import InfopruneError
from infoprune_rt.files import make_directory, write_text


class ResultFile:
    """One file, written anew with each finding, so that a run that is broken off leaves what it had."""

    def __init__(self, path: Path, device: torch.device) -> None:
        if path.is_dir():
            raise InfopruneError(f"{path} is a directory; name a file")
        make_directory(path.parent)
        self._path, self._device = path, device
        self._head = {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": command(),
            "environment": environment() | {"gpu": describe(device)},
        }

    def write(self, found: Findings, goals: Sequence[Target], **more: Any) -> dict[str, Any]:
        """Write all of it and return it."""
        result = {
            **self._head,
            "gpu_at_the_end": state(self._device),
            "sound": found.sound,
            "goals": [goal.to_dict() for goal in goals],
            "failures": found.failures,
            "left_out": found.left_out,
            **more,
            "rows": found.rows,
        }
        write_text(self._path, json.dumps(result, indent=1) + "\n")
        return result
