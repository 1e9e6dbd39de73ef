"""One question from pixels to the last token, with the time of each stage."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

STAGES = ("tower", "prefill", "first_token", "generate")


@dataclass(frozen=True)
class Pass:
    """One generation. ms: by stage; logits: of the first token (vocabulary), float64, on the CPU."""

    ms: dict[str, float]
    logits: Tensor


@torch.inference_mode()
def generate(model: Any, tower: nn.Module, inputs: dict[str, Tensor], new_tokens: int) -> Pass:
    """Greedy generation of exactly ``new_tokens``, timed by hooks on the tower and the model.

    ``first_token`` is from the call to the first logits, ``tower`` and ``prefill`` (embedding, language model, head)
    are its parts, ``generate`` is all of it.
    """
    towers: list[float] = []
    steps: list[float] = []
    logits: list[Tensor] = []
    with _stamped(tower, towers, lambda output: None), _stamped(model, steps, _keep_first(logits)):
        began = _now(model)
        model.generate(
            **inputs, max_new_tokens=new_tokens, min_new_tokens=new_tokens, do_sample=False, use_cache=True, **_UNUSED
        )
        ended = _now(model)
    first = steps[1] - began
    seen = sum(stop - start for start, stop in zip(towers[::2], towers[1::2], strict=True))
    return Pass({"tower": seen, "prefill": first - seen, "first_token": first, "generate": ended - began}, logits[0])


# A checkpoint's sampling settings mean nothing to greedy decoding but a warning.
_UNUSED = {"temperature": None, "top_p": None, "top_k": None}


def _now(module: nn.Module) -> float:
    """Milliseconds, once the module's device has done what it was given."""
    device = next(module.parameters()).device
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1000 * time.perf_counter()


def _keep_first(logits: list[Tensor]) -> Callable[[Any], None]:
    def keep(output: Any) -> None:
        if not logits:
            logits.append(output.logits[0, -1].double().cpu())

    return keep


@contextmanager
def _stamped(module: nn.Module, stamps: list[float], see: Callable[[Any], None]) -> Iterator[None]:
    """Note when the module's calls begin and end, and show what comes out of them."""

    def before(module: nn.Module, args: Any) -> None:
        stamps.append(_now(module))

    def after(module: nn.Module, args: Any, output: Any) -> None:
        stamps.append(_now(module))
        see(output)

    handles = [module.register_forward_pre_hook(before), module.register_forward_hook(after)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
