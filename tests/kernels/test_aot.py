"""Gates on the compiled kernels, of every table for its chip; compiled here, without a GPU."""

from __future__ import annotations

import importlib
import json
import re
from dataclasses import asdict, replace
from pathlib import Path

import infoprune_kernels
import pytest
from infoprune_kernels.aot import Compiled, compile_all, compile_specimen, versions
from infoprune_kernels.attention import specimens
from infoprune_kernels.configs import tables
from infoprune_kernels.layer_norm import specimen as layer_norm_specimen
from infoprune_kernels.specimens import Specimen
from triton import JITFunction

ROOT = Path(__file__).parents[2]
ROWS = json.loads((ROOT / "benchmarks" / "results" / "aot" / "kernels.json").read_text())
(WIDEST,) = (table for table in tables() if table.name == "h100")


@pytest.fixture(scope="module")
def compiled() -> list[Compiled]:
    return list(compile_all())


def test_no_kernel_has_a_fault(compiled: list[Compiled]) -> None:
    assert not [fault for row in compiled for fault in row.faults()]


def test_every_operator_is_compiled_for_every_chip(compiled: list[Compiled]) -> None:
    operators = {"norm_qkv_rope", "attention", "linear_residual", "ffn_lowrank", "ffn_dense"}
    everywhere = {(kernel, arch) for kernel in operators for arch in ("sm_80", "sm_89", "sm_90")}
    assert {(row.kernel, row.arch) for row in compiled} == everywhere | {("attention_hopper", "sm_90")}


@pytest.mark.parametrize("arch", [80, 89, 90])
def test_layer_norm_has_no_fault(arch: int) -> None:
    """But that it multiplies nothing."""
    faults = compile_specimen(layer_norm_specimen(), arch).faults()
    assert not [fault for fault in faults if "tensor-core" not in fault and "asynchronously" not in fault]


@pytest.mark.skipif(ROWS["versions"] != versions(), reason="the table is of another compiler")
def test_the_table_is_of_these_kernels(compiled: list[Compiled]) -> None:
    assert ROWS["rows"] == [asdict(row) for row in compiled], "run make aot"


def attention(dim: int, **constexprs: int) -> Specimen:
    """With the tile for many tokens, which a head size's last rule has."""
    specimen = [found for found in specimens(WIDEST) if found.constexprs["D"] == dim][-1]
    return replace(specimen, constexprs=specimen.constexprs | constexprs)


@pytest.mark.parametrize(
    ("wrong", "arch", "told"),
    [
        (replace(attention(128, BM=128), num_warps=4), 80, r"spills \d+ bytes"),
        (replace(attention(128, BN=128), num_stages=4), 80, "shared memory, the limit is 166912"),
        (replace(attention(64), num_stages=1), 80, "copies nothing asynchronously"),
        (attention(72, D=75), 80, r"loads \d+ single 16-bit numbers in loops"),
        # wgmma wants 64 rows per warp group.
        (attention(64, BM=32), 90, "no tensor-core instructions"),
    ],
)
def test_each_gate_can_fail(wrong: Specimen, arch: int, told: str) -> None:
    faults = compile_specimen(wrong, arch).faults()
    assert [fault for fault in faults if re.search(told, fault)], faults


def test_no_kernel_is_compiled_anew_for_another_number_of_tokens() -> None:
    """Triton specialises integers on being 1 and on multiples of 16; nothing may compile inside a request."""
    found = {}
    for path in Path(infoprune_kernels.__file__).parent.glob("*.py"):
        module = importlib.import_module(f"infoprune_kernels.{path.stem}")
        for name, kernel in vars(module).items():
            if isinstance(kernel, JITFunction) and "tokens" in kernel.arg_names:
                found[name] = kernel.params[kernel.arg_names.index("tokens")].do_not_specialize
    assert len(found) >= 5
    assert all(found.values()), found
