"""What is not served on CUDA is one sentence."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from on_gpu import DEVICE, moved
from operator_cases import OPS, attention_case, cast, linear_case, lowrank_case, qkv_case, quantized
from torch import Tensor

from infoprune_rt.errors import InfopruneError
from infoprune_rt.ops import plain, triton_backend
from infoprune_rt.ops.triton_backend import demanding


def on_gpu_but(place: int, args: tuple[Any, ...]) -> tuple[Any, ...]:
    """All on the GPU, but one argument on the other side."""
    there = moved(args)
    wrong = args[place] if args[place].is_floating_point() else args[place].to(DEVICE)
    return (*there[:place], wrong, *there[place + 1 :])


@pytest.mark.parametrize(
    ("name", "args", "place", "told"),
    [
        ("linear_residual", linear_case(4, 8, 16), 0, "bias is torch.bfloat16 on cuda:"),
        ("linear_residual", linear_case(4, 8, 16), 1, "weight is torch.bfloat16 on cpu, but the input is"),
        ("norm_qkv_rope", qkv_case(4, 16, 2, 8, rope=True), 6, "cos must be float32 on cuda:"),
        ("ffn_lowrank", lowrank_case(4, 16, 8), 5, "up is torch.bfloat16 on cpu, but the input is"),
        ("attention", attention_case([4], 2, 16), 2, "v is torch.bfloat16 on cpu, but the input is"),
        ("attention", attention_case([4], 2, 16), 3, "cu_seqlens must be a one-dimensional int64 tensor on the CPU"),
    ],
)
def test_mixed_devices(name: str, args: tuple[Any, ...], place: int, told: str) -> None:
    with pytest.raises(InfopruneError, match=f"infoprune::{name}: .*{re.escape(told)}") as found:
        getattr(OPS, name)(*on_gpu_but(place, cast(args, torch.bfloat16)))
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(
    ("name", "args", "told"),
    [
        ("linear_residual", cast(linear_case(4, 8, 16), torch.float32), "float16 and bfloat16, not float32"),
        ("linear_residual", linear_case(4, 8, 16), "float16 and bfloat16, not float64"),
        ("linear_residual", quantized("linear_residual", cast(linear_case(4, 8, 16), torch.bfloat16)), "no int8"),
        ("attention", cast(attention_case([4], 2, 256), torch.bfloat16), "does not serve head_dim 256"),
        ("norm_qkv_rope", cast(qkv_case(4, 16, 2, 5, rope=False), torch.float16), "dimension must be even, not 5"),
    ],
)
def test_what_the_kernels_do_not_serve(
    monkeypatch: pytest.MonkeyPatch, name: str, args: tuple[Any, ...], told: str
) -> None:
    """An error for who demands them; for others PyTorch's operators serve, and one warning says so."""
    there = tuple(a.to(DEVICE) if isinstance(a, Tensor) and a.dtype != torch.int64 else a for a in args)
    with demanding("triton"), pytest.raises(InfopruneError, match=told) as found:
        getattr(OPS, name)(*there)
    assert "\n" not in str(found.value)
    monkeypatch.setattr(triton_backend, "BY_DEFAULT", True)
    with pytest.warns(RuntimeWarning, match=told):
        made = getattr(OPS, name)(*there)
    exact = getattr(plain, name)(*there)
    made, exact = (value if isinstance(value, tuple) else (value,) for value in (made, exact))
    assert all(map(torch.equal, made, exact))
