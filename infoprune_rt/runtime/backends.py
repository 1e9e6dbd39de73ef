"""Which implementation of the operators runs a tower's blocks."""

from __future__ import annotations

import os

from infoprune_rt.errors import InfopruneError

BACKENDS: dict[str, str] = {
    "plain": "PyTorch operators, any device",
    "csrc": "C++ kernels for the CPU, compiled on first use",
}
VARIABLE = "INFOPRUNE_BACKEND"


def default_backend() -> str:
    """What INFOPRUNE_BACKEND demands, else "plain"."""
    return checked_backend(os.environ.get(VARIABLE) or "plain", f"{VARIABLE}: ")


def checked_backend(name: str, where: str = "") -> str:
    """The name, once it is known to be one."""
    if name not in BACKENDS:
        raise InfopruneError(f"{where}unknown backend {name!r}; known are {', '.join(BACKENDS)}")
    return name
