"""int8 weights: the last step, after compaction and every refit."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def quantized(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A compact block's state with int8 weights, and beside each its ``<name>_scale``.

    Norms and biases stay as they are, and so do weights that are int8 already.
    """
    result = dict(state)
    for name, tensor in state.items():
        if tensor.ndim == 2 and tensor.is_floating_point():
            result[name], result[f"{name}_scale"] = quantize_weight(tensor)
    return result


def quantize_weight(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 codes (N x K, in -127..127) and a scale per row (N, the weight's dtype).

    codes * scale[:, None] is within half a scale of the weight. A row of zeros has scale 1.
    """
    wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
    steps = wide.abs().amax(1) / 127
    scale = _rounded_up(steps).where(steps > 0, 1)
    codes = (wide / scale[:, None]).round().clamp(-127, 127).to(torch.int8)
    return codes, scale.to(weight.dtype)


def _rounded_up(steps: Tensor) -> Tensor:
    """To whole multiples of 2^-24 with 8 significant bits: bfloat16 and float16 both hold them exactly.

    So a quantised tower is the same in every dtype that it is converted to.
    """
    last_bit = torch.frexp(steps).exponent - 8
    unit = torch.ldexp(torch.ones_like(steps), last_bit.clamp(min=-24))
    return (steps / unit).ceil() * unit
