"""The operators on CUDA: the Triton kernels (``infoprune_kernels``) where they serve, else the plain definitions.

Triton is not imported before the first call with tensors on CUDA. Who demanded the kernels gets an error where they
do not serve; else PyTorch's operators do, and one warning says why.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch

from infoprune_rt.errors import InfopruneError
from infoprune_rt.ops import plain

VARIABLE = "INFOPRUNE_BACKEND"
DTYPES = (torch.float16, torch.bfloat16)
# Whether towers on CUDA get the kernels without demanding them: not before these have been run on a GPU.
BY_DEFAULT = False

_demanded: ContextVar[str | None] = ContextVar("demanded_backend", default=None)
_failed: set[str] = set()  # operators whose kernel could not be compiled or started in this process
_told: set[str] = set()


def missing() -> str | None:
    """Why there are no GPU kernels in this installation; None where they are. Nothing is imported for the answer."""
    absent = next((name for name in ("triton", "infoprune_kernels") if find_spec(name) is None), None)
    return absent and f"{absent} is not installed"


def serves(device: str, dtype: torch.dtype) -> bool:
    """Whether the kernels run towers of this dtype on this type of device by default."""
    return BY_DEFAULT and device == "cuda" and dtype in DTYPES and missing() is None


@contextmanager
def demanding(backend: str | None) -> Iterator[None]:
    """What a tower's user demanded to run the operators called within; None: INFOPRUNE_BACKEND decides."""
    token = _demanded.set(backend)
    try:
        yield
    finally:
        _demanded.reset(token)


def mind_device(demanded: str | None, device: torch.device) -> None:
    """Say once that a tower cannot have the kernels where its tensors are."""
    if demanded == "triton" and device.type != "cuda":
        _tell(f"PyTorch's operators run the compact tower: the GPU kernels serve CUDA devices, but it is on {device}")


def on_cuda(name: str) -> Callable[..., Any]:
    """The operator for tensors on CUDA; its arguments have been checked."""
    definition = getattr(plain, name)

    def run(*args: Any) -> Any:
        demanded = _demanded.get() or os.environ.get(VARIABLE) or None
        if demanded != "triton" and (demanded is not None or not BY_DEFAULT or name in _failed):
            return definition(*args)
        try:
            return _launch(name, args)
        except (torch.OutOfMemoryError, torch.AcceleratorError):
            raise  # the device's own troubles, which PyTorch's operators would have, too
        except Exception as error:
            if demanded == "triton":
                raise InfopruneError(f"infoprune::{name} cannot run on the GPU kernels: {_cause(error)}") from error
            # Sizes and dtypes that a kernel does not serve are its own sentence; others it may still serve.
            if not isinstance(error, ValueError):
                _failed.add(name)
            _tell(f"infoprune::{name} runs on PyTorch's operators instead of the GPU kernels: {_cause(error)}")
        return definition(*args)

    return run


def _launch(name: str, args: tuple[Any, ...]) -> Any:
    """Raises ValueError for what the kernels do not serve, and whatever Triton raises where it cannot compile."""
    if args[0].dtype not in DTYPES:
        raise ValueError(f"they compute in float16 and bfloat16, not {str(args[0].dtype).removeprefix('torch.')}")
    if any(isinstance(arg, torch.Tensor) and arg.dtype == torch.int8 for arg in args):
        raise ValueError("they take no int8 weights")
    import infoprune_kernels

    taken = [arg for place, arg in enumerate(args) if place not in _scales(name)]
    with torch.cuda.device_of(args[0]):  # type: ignore[no-untyped-call]
        return getattr(infoprune_kernels, name)(*taken)


@cache
def _scales(name: str) -> frozenset[int]:
    """The places of int8 weights' scales among the operator's arguments, which the kernels do not have."""
    arguments = getattr(torch.ops.infoprune, name).default._schema.arguments
    return frozenset(place for place, argument in enumerate(arguments) if argument.name.endswith("_scale"))


def _cause(error: Exception) -> str:
    """In one line; what is no sentence of the kernels' own is named by its type."""
    lines = str(error).strip().splitlines() or [""]
    return lines[0] if isinstance(error, ValueError) else f"{type(error).__name__}: {lines[-1]}"


def _tell(sentence: str) -> None:
    if sentence not in _told:
        _told.add(sentence)  # before the warning, which a filter may turn into an exception
        warnings.warn(f"{sentence} ({VARIABLE}=plain keeps them without this warning)", RuntimeWarning, stacklevel=3)
