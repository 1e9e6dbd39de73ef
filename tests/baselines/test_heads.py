"""YOPO's head statistic and the masks that come of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_decoders import HEADS, IMAGE, KV_HEADS, LAYERS, MODELS, prompt, small

from infoprune_rt.baselines.yopo import (
    DecoderShape,
    YopoSettings,
    head_ratios,
    install,
    keep_evenly,
    keep_highest,
    preset,
    read_masks,
    write_masks,
)
from infoprune_rt.errors import InfopruneError


@pytest.mark.parametrize("kind", MODELS)
def test_the_ratio_is_visual_over_text_attention(kind: str) -> None:
    model = small(kind)
    batches = [
        prompt(model, segments, seed) for seed, segments in enumerate([[2, (3, 4), 2], [1, (3, 3), 1, (3, 3), 5]])
    ]
    layers = model.model.language_model.layers
    hooks = [len(layer.self_attn._forward_hooks) for layer in layers]
    found = head_ratios(model, batches)
    assert [len(layer.self_attn._forward_hooks) for layer in layers] == hooks
    assert model.model.language_model.config._attn_implementation == "sdpa"
    sums = torch.zeros(2, LAYERS, HEADS, dtype=torch.float64)
    model.model.language_model.set_attn_implementation("eager")
    for batch in batches:
        is_visual = batch["input_ids"][0] == IMAGE
        for layer, weights in enumerate(model(**batch, output_attentions=True).attentions):
            for i, keys in enumerate((is_visual, ~is_visual)):
                sums[i, layer] += weights[0, :, :, keys].double().sum(dim=(1, 2))
    model.model.language_model.set_attn_implementation("sdpa")
    assert found.shape == (LAYERS, HEADS)
    torch.testing.assert_close(found, sums[0] / sums[1], rtol=1e-6, atol=0)
    assert model.model.language_model.config._attn_implementation == "sdpa"


def test_padding_does_not_count() -> None:
    model = small("llava")
    short, long = prompt(model, [1, (3, 3), 2], seed=1), prompt(model, [1, (3, 3), 5], seed=2)
    padding = torch.zeros(1, 3, dtype=torch.long)
    ids = torch.cat([torch.cat([padding, short["input_ids"]], dim=1), long["input_ids"]])
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    pixels = torch.cat([short["pixel_values"], long["pixel_values"]])
    batch = {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}
    torch.testing.assert_close(head_ratios(model, [batch]), head_ratios(model, [short, long]), rtol=1e-5, atol=0)


def test_calibration_needs_pictures() -> None:
    model = small("llava")
    with pytest.raises(InfopruneError, match="give prompts with pictures"):
        head_ratios(model, [{"input_ids": torch.tensor([[1, 2]])}])
    with pytest.raises(InfopruneError, match="give prompts with pictures"):
        head_ratios(model, [])


@given(st.integers(1, 9), st.integers(1, 5), st.floats(0, 1))
def test_masks_keep_the_share_of_the_highest(heads: int, layers: int, share: float) -> None:
    ratios = torch.rand(layers, heads, dtype=torch.float64)
    for row, values in zip(keep_highest(ratios, share), ratios, strict=True):
        stays = torch.tensor(row)
        assert stays.sum() == round(heads * share)
        if stays.any() and not stays.all():
            assert values[stays].min() > values[~stays].max()


@given(st.integers(1, 8), st.integers(1, 8), st.floats(0, 1))
def test_evenly_dropped_heads_are_spread_over_the_kv_heads(kv_heads: int, group: int, share: float) -> None:
    (row,) = keep_evenly(1, kv_heads * group, share)
    counts = torch.tensor(row).view(kv_heads, group).sum(dim=1)
    assert counts.sum() == round(kv_heads * group * share)
    assert counts.max() - counts.min() <= 1


@given(st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=1, max_size=4))
def test_masks_survive_their_file(tmp_path_factory: pytest.TempPathFactory, rows: list[list[bool]]) -> None:
    masks = tuple(tuple(row) for row in rows)
    path = tmp_path_factory.mktemp("masks") / "heads.json"
    write_masks(path, masks)
    assert read_masks(path) == masks
    assert all(type(stays) is bool for row in read_masks(path) for stays in row)


def test_calibrated_masks_drive_both_the_preset_and_the_model(tmp_path: Path) -> None:
    model = small("qwen2_vl")
    shape = DecoderShape.of(model.config)
    inputs = prompt(model, [2, (3, 4), 3])
    ratios = head_ratios(model, [inputs])
    write_masks(tmp_path / "heads.json", keep_highest(ratios, 0.75))
    settings = preset("nominal_25", shape, ratios)
    assert settings.heads == read_masks(tmp_path / "heads.json")
    assert settings.layer_cut == 2
    with install(model, settings, "compact"):
        model.generate(**inputs, max_new_tokens=2)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        json.dumps({"live_heads": [[1]]}),
        *(
            json.dumps({"kind": "yopo head masks", "live_heads": rows})
            for rows in (None, [], [1], [[1, 2]], [[1, 0], [1]], [["1"]], [[[]]], {"a": 1})
        ),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, content: str) -> None:
    path = tmp_path / "heads.json"
    path.write_text(content)
    with pytest.raises(InfopruneError, match=r"heads\.json"):
        read_masks(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InfopruneError, match=r"none\.json"):
        read_masks(tmp_path / "none.json")


@pytest.mark.parametrize("kind", MODELS)
def test_masks_of_another_model_are_refused(kind: str) -> None:
    shape = DecoderShape.of(small(kind).config)
    assert shape == DecoderShape(LAYERS, 48, HEADS, KV_HEADS[kind], 8, 20)
    for masks in (keep_evenly(LAYERS, HEADS + 1, 0.5), keep_evenly(LAYERS - 1, HEADS, 0.5), ((True,), (True, False))):
        with pytest.raises(InfopruneError, match="do not fit a decoder of 4 layers with 6 heads; calibrate"):
            install(small(kind), YopoSettings(masks), "compact")
