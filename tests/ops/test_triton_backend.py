"""Which operators run on the GPU's kernels, and what is said where they do not; as far as it shows without a GPU."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from operator_cases import (
    attention_case,
    cast,
    dense_case,
    gated_case,
    hybrid_case,
    linear_case,
    lowrank_case,
    qkv_case,
    quantized,
)

import infoprune_rt
from infoprune_rt.errors import InfopruneError
from infoprune_rt.ops import SCHEMAS, plain, triton_backend
from infoprune_rt.ops.triton_backend import demanding, on_cuda, serves
from infoprune_rt.runtime.backends import BACKENDS, describe_backends

TESTS = Path(__file__).parents[1]
CASES = {
    "norm_qkv_rope": lambda: (*qkv_case(7, 32, 3, 16, rope=False), None),
    "attention": lambda: attention_case([4, 0, 9], 3, 32),
    "linear_residual": lambda: (*linear_case(5, 16, 24), None),
    "ffn_lowrank": lambda: (*lowrank_case(5, 32, None), None, None),
    "ffn_dense": lambda: (*dense_case(5, 32, 20, "gelu"), None, None),
    "ffn_dense hybrid": lambda: hybrid_case(5, 32, 12, 8, "gelu"),
    "ffn_dense gated": lambda: gated_case(5, 32, 20),
}
needs_triton = pytest.mark.skipif(triton_backend.missing() is not None, reason="triton is not installed")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="kernels can be compiled here")


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing has failed in this process, nothing was said, nothing is demanded; the kernels are the default."""
    monkeypatch.setattr(triton_backend, "BY_DEFAULT", True)
    monkeypatch.setattr(triton_backend, "_failed", set())
    monkeypatch.setattr(triton_backend, "_told", set())
    monkeypatch.delenv("INFOPRUNE_BACKEND", raising=False)


def python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    inherited = [path for path in (os.environ.get("PYTHONPATH"),) if path]
    paths = os.pathsep.join([str(TESTS / "ops"), str(TESTS / "runtime"), *inherited])
    environment = {**os.environ, "PYTHONPATH": paths} | variables
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)


def assert_plain(name: str, args: tuple[Any, ...], times: int = 1) -> None:
    for _ in range(times):
        assert torch.equal(on_cuda(name)(*args), getattr(plain, name)(*args))


def test_the_kernels_are_not_imported_before_they_are_needed() -> None:
    """And triton by them alone, as far as it is ours to say: transformers imports it by itself."""
    found = python(
        "import sys, torch, infoprune_rt, infoprune_rt.runtime.encoder\n"
        "x = torch.ones(2, 2)\n"
        "torch.ops.infoprune.linear_residual(x, x, x[0], x)\n"
        "print('infoprune_kernels' in sys.modules)"
    )
    assert found.stdout.split() == ["False"], found.stderr
    ours = (Path(infoprune_rt.__file__).parent).rglob("*.py")
    assert not [
        path for path in ours if re.search(r"^(import|from) (triton|infoprune_kernels)", path.read_text(), re.M)
    ]


@needs_triton
def test_every_operator_has_a_kernel_for_cuda() -> None:
    for name in SCHEMAS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"infoprune::{name}", "CUDA")
        assert not torch._C._dispatch_has_kernel_for_dispatch_key(f"infoprune::{name}_backward", "CUDA")


def test_without_triton_pytorch_serves_and_who_demands_it_is_told() -> None:
    found = python(
        "import sys, torch\n"
        "sys.modules['triton'] = None\n"
        "import infoprune_rt.ops\n"
        "from infoprune_rt.runtime.backends import describe_backends, demanded_backend\n"
        "print(torch._C._dispatch_has_kernel_for_dispatch_key('infoprune::attention', 'CUDA'))\n"
        "print(describe_backends()['triton'])\n"
        "demanded_backend()",
        INFOPRUNE_BACKEND="triton",
    )
    assert found.stdout.splitlines() == ["False", "not available (triton is not installed)"], found.stderr
    told = "INFOPRUNE_BACKEND: backend 'triton' cannot be had: triton is not installed; install it, or choose another"
    assert told in found.stderr.splitlines()[-1]


def test_before_they_have_run_on_a_gpu_they_must_be_demanded(monkeypatch: pytest.MonkeyPatch) -> None:
    assert python("from infoprune_rt.ops import triton_backend as t; print(t.BY_DEFAULT)").stdout == "False\n"
    monkeypatch.setattr(triton_backend, "BY_DEFAULT", False)
    assert not serves("cuda", torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_plain("linear_residual", cast(linear_case(3, 4, 6), torch.bfloat16))


@needs_triton
def test_it_can_be_the_default_on_cuda_in_half_precision() -> None:
    assert "triton" in BACKENDS
    assert serves("cuda", torch.bfloat16)
    assert serves("cuda", torch.float16)
    assert not serves("cuda", torch.float32)
    assert not serves("cpu", torch.bfloat16)


@without_gpu
@needs_triton
def test_doctor_says_that_there_is_no_device() -> None:
    assert describe_backends()["triton"] == "not available (no CUDA device)"


@needs_triton
def test_a_tower_on_the_cpu_has_no_use_for_them_and_says_so_once() -> None:
    found = python(
        "import warnings\n"
        "from test_cpu_engine import *\n"
        "tower = compact_tower()\n"
        "x = pixels(tower)\n"
        "made = []\n"
        "with warnings.catch_warnings(record=True) as told:\n"
        "    warnings.simplefilter('always')\n"
        "    for tower.backend in ('plain', 'triton', 'triton'):\n"
        "        with torch.no_grad():\n"
        "            made.append(tower(x, GRIDS).pooler_output)\n"
        "print(tower.backend, tower._engine, all(torch.equal(made[0], each) for each in made))\n"
        "print([str(each.message) for each in told])"
    )
    first, second = found.stdout.splitlines()
    assert first.split() == ["triton", "None", "True"], found.stderr
    assert second.count("run the compact tower") == 1
    assert "the GPU kernels serve CUDA devices, but it is on cpu" in second


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (cast(linear_case(3, 4, 6), torch.float32), "they compute in float16 and bfloat16, not float32"),
        (quantized("linear_residual", cast(linear_case(3, 4, 6), torch.bfloat16)), "they take no int8 weights"),
    ],
)
def test_what_they_do_not_serve_is_said_once(args: tuple[Any, ...], told: str) -> None:
    sentence = f"infoprune::linear_residual runs on PyTorch's operators instead of the GPU kernels: {told}"
    with pytest.warns(RuntimeWarning, match=sentence) as found:
        assert_plain("linear_residual", args, times=2)
    assert len(found) == 1
    assert "linear_residual" not in triton_backend._failed  # other sizes may be served
    with demanding("triton"), pytest.raises(InfopruneError, match=f"cannot run on the GPU kernels: {told}"):
        on_cuda("linear_residual")(*args)


@without_gpu
@needs_triton
def test_a_kernel_that_cannot_be_compiled_is_named_once_and_replaced() -> None:
    """Here none can, as no driver says what for."""
    args = cast(linear_case(3, 4, 6), torch.bfloat16)
    with pytest.warns(RuntimeWarning, match=r"infoprune::linear_residual runs .*: RuntimeError: .*drivers") as found:
        assert_plain("linear_residual", args, times=2)
    assert len(found) == 1
    assert triton_backend._failed == {"linear_residual"}
    with demanding("triton"), pytest.raises(InfopruneError, match="cannot run on the GPU kernels: RuntimeError"):
        on_cuda("linear_residual")(*args)


@pytest.mark.parametrize("backend", ["plain", "csrc"])
def test_other_backends_that_were_demanded_are_not_replaced(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    args = cast(linear_case(3, 4, 6), torch.bfloat16)
    with warnings.catch_warnings(action="error"):
        with demanding(backend):
            assert_plain("linear_residual", args)
        monkeypatch.setenv("INFOPRUNE_BACKEND", backend)
        assert_plain("linear_residual", args)


@needs_triton
def test_the_kernels_are_called_with_the_operators_arguments() -> None:
    """In the interpreter, which takes tensors of the CPU; a warning would mean that PyTorch's operators ran."""
    found = python(
        "import infoprune_kernels, torch\n"
        "from operator_cases import cast, outputs, split\n"
        "from test_triton_backend import CASES, on_cuda\n"
        "for case, make in CASES.items():\n"
        "    name, args = case.split()[0], cast(make(), torch.float16)\n"
        "    made = outputs(on_cuda(name)(*args))\n"
        "    if name != 'attention':\n"
        "        before, _, behind = split(name, args)\n"
        "        args = before + behind\n"
        "    exact = outputs(getattr(infoprune_kernels, name)(*args))\n"
        "    print(all(map(torch.equal, made, exact)))",
        TRITON_INTERPRET="1",
        PYTHONWARNINGS="error::RuntimeWarning",
        INFOPRUNE_BACKEND="triton",
    )
    assert found.stdout.split() == ["True"] * len(CASES), found.stderr
