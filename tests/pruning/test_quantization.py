"""int8 weights: how far they are from what they stand for, and that no dtype changes them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from random_towers import ARCHITECTURES, compact_tower, last_hidden, make_plan, random_batch, random_tower
from torch import Tensor

from infoprune_rt.plan import FFNPlan
from infoprune_rt.pruning.apply import apply_plan
from infoprune_rt.pruning.quantization import quantize_weight

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
SOME = [(0, 2), (1,), (), (0, 1, 2)]
FORMS = [FFNPlan("rrr", size=5), FFNPlan("neurons", size=20), FFNPlan("taylor", size=30), FFNPlan("hybrid", size=20)]


@st.composite
def weights(draw: st.DrawFn) -> Tensor:
    """Rows of magnitudes far apart, some of zeros, in any dtype that a tower may have."""
    rows, columns = draw(st.integers(1, 6)), draw(st.integers(1, 40))
    exponents = draw(st.lists(st.integers(-40, 9), min_size=rows, max_size=rows))
    present = draw(st.lists(st.sampled_from([0.0, 1.0, 1.0]), min_size=rows, max_size=rows))
    size = torch.tensor(present, dtype=torch.float64) * torch.exp2(torch.tensor(exponents, dtype=torch.float64))
    return (torch.randn(rows, columns, dtype=torch.float64) * size[:, None]).to(draw(st.sampled_from(DTYPES)))


@given(weight=weights())
def test_a_weight_is_within_half_a_scale(weight: Tensor) -> None:
    codes, scale = quantize_weight(weight)
    assert codes.dtype == torch.int8
    assert scale.dtype == weight.dtype
    assert codes.min() >= -127
    wide = scale.double()[:, None]
    assert ((weight.double() - codes * wide).abs() <= wide / 2 * (1 + 1e-6)).all()


@given(weight=weights())
def test_scales_are_the_same_in_every_dtype(weight: Tensor) -> None:
    _, scale = quantize_weight(weight.double())
    for dtype in DTYPES:
        assert torch.equal(scale.to(dtype).double(), scale)


@given(weight=weights())
def test_no_scale_is_wider_than_it_must_be(weight: Tensor) -> None:
    """Above the smallest scale there is, rounding up costs less than one part in 128: some code is 126 or 127."""
    codes, scale = quantize_weight(weight)
    largest = weight.double().abs().amax(1)
    assert torch.equal(scale[largest == 0].double(), torch.ones_like(largest[largest == 0]))
    assert (codes[largest > 127 * 2**-17].abs().amax(1) >= 126).all()


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_plan_quantises_what_it_fitted(architecture: str, sequential: bool) -> None:
    """After every fit: the float tower's weights within half a scale, everything else as it was."""
    tower, adapter = random_tower(architecture)
    batches = [random_batch(architecture) for _ in range(3)]
    plan = make_plan(architecture, SOME, FORMS, refit=True, sequential=sequential)
    plain = apply_plan(tower, adapter, plan, lambda: batches)
    applied = apply_plan(tower, adapter, plan.quantized("int8"), lambda: batches)
    assert [spec.pop("quantize") for spec in applied.specs] == ["int8"] * 4
    assert applied.specs == plain.specs
    assert applied.plan == plain.plan.quantized("int8")
    for name, tensor in plain.state.items():
        if f"{name}_scale" in applied.state:
            wide = applied.state[f"{name}_scale"][:, None]
            assert ((applied.state[name] * wide - tensor).abs() <= wide / 2 * (1 + 1e-6)).all(), name
        else:
            assert torch.equal(applied.state[name], tensor), name
    assert {name for name, t in applied.state.items() if t.dtype == torch.int8} == {
        name for name, t in plain.state.items() if name.startswith("blocks.") and t.ndim == 2
    }


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_quantised_tower_is_close_to_its_float_one(architecture: str) -> None:
    tower, adapter = random_tower(architecture)
    plan, batch = make_plan(architecture, SOME), random_batch(architecture)
    float_, int8 = (
        last_hidden(compact_tower(architecture, apply_plan(tower, adapter, one, list)), batch)
        for one in (plan, plan.quantized("int8"))
    )
    error = (int8 - float_).square().mean().sqrt() / float_.square().mean().sqrt()
    assert 1e-4 < error < 0.03


def test_a_plan_may_leave_blocks_as_they_are() -> None:
    tower, adapter = random_tower("clip")
    plan = make_plan("clip", SOME)
    plan = replace(plan, blocks=(replace(plan.blocks[0], quantize="int8"), *plan.blocks[1:]))
    applied = apply_plan(tower, adapter, plan, list)
    assert {name.split(".")[1] for name, t in applied.state.items() if t.dtype == torch.int8} == {"0"}
    assert [spec.get("quantize") for spec in applied.specs] == ["int8", None, None, None]
    assert last_hidden(compact_tower("clip", applied), random_batch("clip")).isfinite().all()
