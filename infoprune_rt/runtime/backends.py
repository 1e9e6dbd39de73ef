"""Which implementation of the operators runs a tower's blocks."""

from __future__ import annotations

import os
import warnings
from threading import Lock

import torch

from infoprune_rt.errors import InfopruneError
from infoprune_rt.ops import triton_backend
from infoprune_rt.ops.cpu_library import load_library, origin
from infoprune_rt.ops.triton_backend import VARIABLE

BACKENDS: dict[str, str] = {
    "plain": "PyTorch operators, any device",
    "csrc": "C++ kernels for the CPU",
    "triton": "Triton kernels for CUDA",
}

_settling = Lock()
if hasattr(os, "register_at_fork"):  # a child has none of the threads that might have held it

    def _new_lock() -> None:
        global _settling
        _settling = Lock()

    os.register_at_fork(after_in_child=_new_lock)
_settled: str | None = None  # what serves on the CPU in this process where nothing was demanded


def demanded_backend() -> str | None:
    """What INFOPRUNE_BACKEND demands; None where it is unset."""
    name = os.environ.get(VARIABLE)
    return checked_backend(name, f"{VARIABLE}: ") if name else None


def checked_backend(name: str, where: str = "") -> str:
    """The name, once it is known to be one, and to be installed."""
    if name not in BACKENDS:
        raise InfopruneError(f"{where}unknown backend {name!r}; known are {', '.join(BACKENDS)}")
    if name == "triton" and (why := triton_backend.missing()):
        raise InfopruneError(f"{where}backend 'triton' cannot be had: {why}; install it, or choose another backend")
    return name


def settle_default() -> str:
    """The fastest backend that can be had on the CPU: the kernels, compiled now if need be, else "plain".

    Asked at the first pass that can use the kernels, and settled for the process then: where they cannot be had, one
    warning says why.
    """
    global _settled
    with _settling:
        if _settled is None:
            try:
                load_library()
                _settled = "csrc"
            except InfopruneError as error:
                first_line = str(error).partition("\n")[0]  # a compiler may have had more to say
                _settled = "plain"  # before the warning, which a filter may turn into an exception
                warnings.warn(
                    f"PyTorch's operators run the compact tower, slower than the CPU kernels would: {first_line} "
                    f"({VARIABLE}=plain keeps them without this warning)",
                    RuntimeWarning,
                    stacklevel=2,
                )
        return _settled


def expected_default() -> str:
    """What settle_default found; before it was asked, what it will find as far as is seen without compiling."""
    if _settled is not None:
        return _settled
    try:
        origin()
    except InfopruneError:
        return "plain"
    return "csrc"


def describe_backends() -> dict[str, str]:
    """For ``infoprune doctor``: each backend, and whether it can serve here. Nothing is compiled for the answer."""
    try:
        csrc = f"available ({BACKENDS['csrc']}, {origin()})"
    except InfopruneError as error:
        csrc = f"not available ({error})"
    absent = triton_backend.missing() or (None if torch.cuda.is_available() else "no CUDA device")
    triton = f"not available ({absent})" if absent else f"available ({BACKENDS['triton']})"
    return {"plain": f"available ({BACKENDS['plain']})", "csrc": csrc, "triton": triton}
