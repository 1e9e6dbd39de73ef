"""A compact tower from which nothing was removed is transformers' tower; with things removed, it is the spec'd sum."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from small_towers import (
    ARCHITECTURES,
    GRIDS,
    assert_as_good,
    double,
    tower,
    tower_inputs,
    vision_config,
    vlm_config,
    vlm_inputs,
)
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText
from transformers.modeling_outputs import BaseModelOutputWithPooling

from infoprune_rt.errors import InfopruneError
from infoprune_rt.runtime.encoder import CompactEncoder
from infoprune_rt.towers import adapter_by_name, adapter_for

MIXED = [
    {"num_heads": 1, "ffn": "lowrank", "size": 7},
    {"num_heads": 0, "ffn": "merged", "size": None},
    {"num_heads": 3, "ffn": "neurons", "size": 19},
]


def uncompressed(architecture: str, dense: nn.Module) -> CompactEncoder:
    """The dense tower's own weights under the compact tower's names."""
    adapter = adapter_by_name(architecture)
    shape = adapter.shape(vision_config(architecture))
    blocks = [{"num_heads": shape.num_heads, "ffn": "dense", "size": None}] * shape.num_blocks
    compact = adapter.compact_class(adapter.compact_config(vision_config(architecture), blocks)).eval()
    state = adapter.ends_state(dense)
    for i, block in enumerate(adapter.blocks(dense)):
        weight, bias = adapter.qkv(block)
        parts = {
            "norm1.weight": block.norm1.weight,
            "norm1.bias": block.norm1.bias,
            "qkv.weight": weight.flatten(0, 2),
            "qkv.bias": bias.flatten(),
            "out.weight": block.out_proj.weight,
            "out.bias": block.out_proj.bias,
            "norm2.weight": block.norm2.weight,
            "norm2.bias": block.norm2.bias,
            "ffn.fc1_weight": block.fc1.weight,
            "ffn.fc1_bias": block.fc1.bias,
            "ffn.fc2_weight": block.fc2.weight,
            "ffn.fc2_bias": block.fc2.bias,
        }
        state |= {f"blocks.{i}.{name}": tensor.detach() for name, tensor in parts.items()}
    compact.load_state_dict(state)
    return compact


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_uncompressed_equals_transformers(architecture: str, dtype: torch.dtype) -> None:
    dense = tower(architecture).to(dtype)
    inputs = tower_inputs(architecture)
    with torch.no_grad():
        exact = copy.deepcopy(dense).double()(**double(inputs), output_hidden_states=True)
        theirs = dense(**inputs, output_hidden_states=True)
        mine = uncompressed(architecture, dense).to(dtype)(**inputs, output_hidden_states=True)
    assert type(mine) is type(theirs) is BaseModelOutputWithPooling
    assert_as_good(mine, theirs, exact)


@pytest.mark.parametrize("grids", [[[1, 2, 2]], [[3, 2, 4]], [[1, 2, 2], [1, 2, 26]]])
def test_qwen2_vl_packs_of_any_grid(grids: list[list[int]]) -> None:
    inputs = tower_inputs("qwen2_vl", torch.tensor(grids))
    dense = tower("qwen2_vl")
    with torch.no_grad():
        exact = copy.deepcopy(dense).double()(**double(inputs))
        assert_as_good(uncompressed("qwen2_vl", dense)(**inputs), dense(**inputs), exact)


def test_images_in_a_pack_do_not_see_each_other() -> None:
    compact = uncompressed("qwen2_vl", tower("qwen2_vl"))
    inputs = tower_inputs("qwen2_vl")
    rows = int(GRIDS[0].prod())
    with torch.no_grad():
        before = compact(**inputs).last_hidden_state
        inputs["hidden_states"][:rows] += 1
        after = compact(**inputs).last_hidden_state
    assert not torch.equal(before[:rows], after[:rows])
    assert torch.equal(before[rows:], after[rows:])


def test_clip_stretches_its_positions_to_other_sizes() -> None:
    dense = tower("clip")
    pixels = torch.randn(2, 3, 24, 45)  # neither the trained size nor a multiple of the patch
    with torch.no_grad():
        exact = copy.deepcopy(dense).double()(pixels.double(), interpolate_pos_encoding=True)
        theirs = dense(pixels, interpolate_pos_encoding=True)
        mine = uncompressed("clip", dense)(pixels, interpolate_pos_encoding=True)
    assert_as_good(mine, theirs, exact)


@pytest.mark.parametrize("wanted", [True, False, None, -2, 1, [0, -1], [2, 99]])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_hidden_states_are_chosen_as_in_transformers(architecture: str, wanted: Any) -> None:
    dense, inputs = tower(architecture), tower_inputs(architecture)
    with torch.no_grad():
        theirs = dense(**inputs, output_hidden_states=wanted).hidden_states
        mine = uncompressed(architecture, dense)(**inputs, output_hidden_states=wanted).hidden_states
    assert (mine is None) == (theirs is None)
    if theirs is not None:
        assert [s is None for s in mine] == [s is None for s in theirs]
        for ours, their in zip(mine, theirs, strict=True):
            assert their is None or torch.allclose(ours, their, atol=1e-4)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_return_dict_false_gives_the_same_tuple(architecture: str) -> None:
    compact, inputs = uncompressed(architecture, tower(architecture)), tower_inputs(architecture)
    with torch.no_grad():
        output = compact(**inputs)
        last, pooled = compact(**inputs, return_dict=False)
        *_, states = compact(**inputs, return_dict=False, output_hidden_states=True)
    assert torch.equal(last, output.last_hidden_state)
    assert torch.equal(pooled, output.pooler_output)
    assert len(states) == 4


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_in_the_place_of_a_full_models_tower(architecture: str) -> None:
    """The same logits, and greedy tokens with the compact tower put in."""
    adapter = adapter_by_name(architecture)
    torch.manual_seed(1)
    vlm = AutoModelForImageTextToText.from_config(vlm_config(architecture)).eval()
    dense = tower(architecture)
    adapter.replace_tower(vlm, dense)
    inputs = vlm_inputs(architecture)
    with torch.no_grad():
        expected = vlm(**inputs).logits
        tokens = vlm.generate(**inputs, max_new_tokens=5, do_sample=False)
        adapter.replace_tower(vlm, uncompressed(architecture, dense))
        assert adapter.tower_of(vlm) is not dense
        assert torch.allclose(vlm(**inputs).logits, expected, atol=1e-4)
        assert torch.equal(vlm.generate(**inputs, max_new_tokens=5, do_sample=False), tokens)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_auto_classes_build_it_with_blocks_of_every_kind(architecture: str) -> None:
    adapter = adapter_by_name(architecture)
    config = adapter.compact_config(vision_config(architecture), MIXED)
    again = AutoConfig.for_model(**config.to_dict())
    assert type(again) is adapter.compact_config_class
    assert again.blocks == MIXED
    assert adapter_for(again) is adapter
    assert adapter.shape(again) == adapter.shape(vision_config(architecture))
    compact = AutoModel.from_config(again)
    assert type(compact) is adapter.compact_class
    assert adapter.tower_of(compact) is compact
    inputs = tower_inputs(architecture)
    dense = tower(architecture)
    with torch.no_grad():
        output, like = compact(**inputs), dense(**inputs)
    assert output.last_hidden_state.shape == like.last_hidden_state.shape
    assert output.pooler_output.shape == like.pooler_output.shape
    assert output.pooler_output.isfinite().all()
    for attribute in ("dtype", "device"):
        assert getattr(compact, attribute) == getattr(dense, attribute), attribute


def test_qwen2_vl_attributes_that_the_full_model_reads() -> None:
    compact, dense = uncompressed("qwen2_vl", tower("qwen2_vl")), tower("qwen2_vl")
    assert compact.spatial_merge_size == dense.spatial_merge_size
    assert compact.get_input_embeddings() is compact.patch_embed


def test_bad_input_is_said_in_a_sentence() -> None:
    qwen, clip = (uncompressed(a, tower(a)) for a in ARCHITECTURES)
    pixels = tower_inputs("qwen2_vl")["hidden_states"]
    with pytest.raises(InfopruneError, match=r"shape \(4, 100\) are not whole patches of 216 numbers"):
        qwen(torch.zeros(4, 100), torch.tensor([[1, 2, 2]]))
    with pytest.raises(InfopruneError, match=r"describes 4 patches, but \d+ rows"):
        qwen(pixels, torch.tensor([[1, 2, 2]]))
    with pytest.raises(InfopruneError, match="multiples of 2"):
        qwen(pixels[:6], torch.tensor([[1, 3, 2]]))
    with pytest.raises(InfopruneError, match=r"\(3, 35, 35\) images .*, not \(1, 3, 35, 34\)"):
        clip(torch.zeros(1, 3, 35, 34))
    with pytest.raises(InfopruneError, match=r"not \(3, 35, 35\)"):
        clip(torch.zeros(3, 35, 35))
    with pytest.raises(InfopruneError, match="no attention maps"):
        clip(torch.zeros(1, 3, 35, 35), output_attentions=True)
    config = adapter_by_name("clip").compact_config(vision_config("clip"), MIXED[:2])
    with pytest.raises(InfopruneError, match="2 entries, but the tower has 3 blocks"):
        AutoModel.from_config(config)
