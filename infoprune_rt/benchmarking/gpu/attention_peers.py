"""Other ways to compute attention over packed sequences, by name: SDPA's backends, and kernels for packs.

All take the operator's arguments (q, k, v of T x h x D, bounds on the host, scale) and give T x (h * D), or T x h x D
where a kernel does.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from infoprune_rt.ops import plain

if TYPE_CHECKING:
    from infoprune_rt.benchmarking.gpu.timing import Run

Args = tuple[Any, ...]
SDPA_BACKENDS = {
    "SDPA, flash": SDPBackend.FLASH_ATTENTION,
    "SDPA, cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA, efficient": SDPBackend.EFFICIENT_ATTENTION,
}
# Peers that may not be installed: their module, and how its function is called.
PACK_KERNELS = {
    "varlen_attn": "torch.nn.attention.varlen",
    "flash-attn 2": "flash_attn",
    "flash-attn 3": "flash_attn_interface",
}


def absent_peers() -> dict[str, str]:
    """Peers whose module is not installed, and that module."""
    return {name: module for name, module in PACK_KERNELS.items() if not _is_there(module)}


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # nor its parent
        return False


def attention_peers() -> dict[str, Callable[[Args], Run]]:
    """SDPA's backends one by one, and the kernels for packs that are installed."""
    absent = absent_peers()
    builders = {"varlen_attn": _varlen_attn, "flash-attn 2": _flash_attn, "flash-attn 3": _flash_attn}
    packs = {name: partial(build, PACK_KERNELS[name]) for name, build in builders.items() if name not in absent}
    return {**{name: partial(_sdpa, backend) for name, backend in SDPA_BACKENDS.items()}, **packs}


def _sdpa(backend: SDPBackend, args: Args) -> Run:
    """Images of equal size that are neighbours as one batch, others one after the other; no other backend steps in."""

    def run() -> Tensor:
        with sdpa_kernel(backend):
            return plain.attention(*args)

    return run


def _bounds_on(device: torch.device, bounds: Tensor) -> tuple[Tensor, int]:
    """What kernels for packs want: bounds on the device in 32 bits, and the longest sequence."""
    return bounds.to(device, torch.int32), int(bounds.diff().max())


def _varlen_attn(module: str, args: Args) -> Run:
    from torch.nn.attention.varlen import varlen_attn

    q, k, v, bounds, _ = args  # its scale is one over the root of the head size, as ours is here
    on_device, longest = _bounds_on(q.device, bounds)

    def run() -> Any:
        return varlen_attn(q, k, v, on_device, on_device, longest, longest)

    return run


def _flash_attn(module: str, args: Args) -> Run:
    flash: Any = __import__(module)
    q, k, v, bounds, scale = args
    on_device, longest = _bounds_on(q.device, bounds)

    def run() -> Tensor:
        out = flash.flash_attn_varlen_func(q, k, v, on_device, on_device, longest, longest, softmax_scale=scale)
        first: Tensor = out[0] if isinstance(out, tuple) else out  # some versions give the sums, too
        return first

    return run


def exact_attention(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, scale: float) -> Tensor:
    """The definition in float64, a head and some thousand queries at a time: all scores at once would not fit."""
    out = torch.empty(q.shape, dtype=torch.float64, device=q.device)
    for begin, end in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        for head in range(q.shape[1]):
            keys, values = (part[begin:end, head].double() for part in (k, v))
            for first in range(begin, end, 4096):
                rows = slice(first, min(first + 4096, end))
                weights = (q[rows, head].double() @ keys.T * scale).softmax(-1)
                out[rows, head] = weights @ values
    return out.flatten(1)
