"""FLOPs: against PyTorch's own counter on the real run, and against published figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from small_decoders import MODELS, prompt, small
from strategies import segments
from strategies import settings as all_settings
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from infoprune_rt.baselines.yopo import (
    DecoderShape,
    VisualLayout,
    YopoSettings,
    as_released_flops,
    compact_flops,
    dense_flops,
    formula_flops,
    head_flops,
    install,
    preset,
)

QWEN2_VL_7B = DecoderShape(layers=28, width=3584, heads=28, kv_heads=4, head_dim=128, ffn_width=18944)
LLAVA_7B = DecoderShape(layers=32, width=4096, heads=32, kv_heads=32, head_dim=128, ffn_width=11008)


def traced_flops(model: PreTrainedModel, run: Callable[[], Any]) -> int:
    """What PyTorch's counter sees inside the language decoder while ``run`` calls the model.

    The counter does not know the CPU's fused attention, so that the two products are spelled out for it (the "math"
    form of ``scaled_dot_product_attention``). It sees matrix products only; the rotary tables, which older
    transformers make by one, are taken off.
    """
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    name = next(name for name, module in model.named_modules() if module is model.model.language_model)
    counts = {module: sum(ops.values()) for module, ops in counter.get_flop_counts().items()}
    decoder = f"{type(model).__name__}.{name}"
    return int(counts.get(decoder, 0) - counts.get(f"{decoder}.rotary_emb", 0))


@pytest.mark.parametrize("kind", MODELS)
@given(data=st.data(), settings=all_settings)
@hypothesis_settings(max_examples=6)
def test_flops_are_what_pytorch_counts(kind: str, data: st.DataObject, settings: YopoSettings) -> None:
    model = small(kind)
    shape, inputs = DecoderShape.of(model.config), prompt(model, data.draw(segments(kind)))
    tokens = inputs["input_ids"].shape[1]
    assert traced_flops(model, lambda: model(**inputs)) == dense_flops(shape, tokens)
    with install(model, settings, "as_released"):
        assert traced_flops(model, lambda: model(**inputs)) == as_released_flops(shape, tokens)
    with install(model, settings, "compact") as yopo:
        traced = traced_flops(model, lambda: model(**inputs))
        assert yopo.layout is not None
        assert traced == compact_flops(shape, settings, yopo.layout)
    assert traced <= dense_flops(shape, tokens)


def test_the_dense_decoder_costs_what_is_published() -> None:
    """method.md section 5: 13.05e9 T + 401,408 T^2."""
    tokens = 411
    products = dense_flops(QWEN2_VL_7B, tokens) - 401_408 * tokens**2
    assert products / tokens == pytest.approx(13.05e9, rel=1e-3)


def test_the_formula_is_yopos() -> None:
    n, d, m = 576, 4096, 11008
    assert formula_flops(LLAVA_7B, n) == 32 * (8 * n * d**2 + 4 * n**2 * d + 6 * n * d * m)
    assert formula_flops(LLAVA_7B, n) == pytest.approx(7.63e12, rel=1e-3)


@pytest.mark.parametrize(
    ("shape", "name", "share"),
    [(LLAVA_7B, "nominal_25", 0.285), (LLAVA_7B, "nominal_12", 0.122), (QWEN2_VL_7B, "qwen2_vl_released", 0.773)],
)
def test_what_the_formula_gives_for_the_presets(shape: DecoderShape, name: str, share: float) -> None:
    """The nominal 25 % counts as 28.5 % this way; the 12 % was chosen to count as 12."""
    assert formula_flops(shape, 576, preset(name, shape)) / formula_flops(shape, 576) == pytest.approx(share, abs=5e-4)


def test_the_formula_takes_every_setting() -> None:
    shape = DecoderShape(layers=4, width=8, heads=4, kv_heads=2, head_dim=2, ffn_width=16)
    settings = YopoSettings(heads=0.5, first_head_layer=1, layer_cut=3, radius=1, ffn_fraction=0.25)
    n, d = 20, 8
    ffn, attention = 6 * n * d * 4, 8 * n * d**2 + 4 * n * 9 * d
    assert formula_flops(shape, n, settings) == 3 * ffn + (1 + 0.5 + 0.5) * attention
    assert formula_flops(shape, 5, YopoSettings(radius=1)) == formula_flops(shape, 5)  # fewer tokens than neighbours


def test_compact_without_pruning_is_dense() -> None:
    layout = VisualLayout.of(torch.tensor([False] * 15 + [True] * 391 + [False] * 5), ((17, 23),))
    assert compact_flops(QWEN2_VL_7B, YopoSettings(), layout) == dense_flops(QWEN2_VL_7B, 411)
    released = preset("qwen2_vl_released", QWEN2_VL_7B)
    assert compact_flops(QWEN2_VL_7B, released, layout) < as_released_flops(QWEN2_VL_7B, 411)


def test_the_head_is_one_product() -> None:
    model = small("llava")
    assert head_flops(model.config) == 2 * model.lm_head.weight.numel()
