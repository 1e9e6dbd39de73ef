"""The adapters name what transformers' towers have: walked part by part, a tower is itself again."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from small_towers import ARCHITECTURES, double, tower, tower_inputs, vision_config, vlm_config
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForImageTextToText, BertConfig, LlavaConfig, SiglipVisionConfig

from infoprune_rt.errors import InfopruneError
from infoprune_rt.towers import adapter_by_name, adapter_for
from infoprune_rt.towers.base import SourceBlock, Stream


def hidden_states(model: nn.Module, inputs: dict[str, Tensor]) -> list[Tensor]:
    """transformers' own residual stream before each block and after the last: T x d each."""
    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states
    return [state.flatten(0, -2) for state in states]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_embed_and_run_block_walk_the_tower(architecture: str) -> None:
    adapter, model, inputs = adapter_by_name(architecture), tower(architecture), tower_inputs(architecture)
    exact = hidden_states(copy.deepcopy(model).double(), double(inputs))
    theirs = hidden_states(model, inputs)
    with torch.no_grad():
        x, stream = adapter.embed(model, inputs)
        ours = [x]
        for block in adapter.blocks(model):
            ours.append(adapter.run_block(block, ours[-1], stream))
    assert stream.cu_seqlens[-1] == len(x)
    for mine, their, truth in zip(ours, theirs, exact, strict=True):
        assert (mine - truth).abs().max() <= 2 * (their - truth).abs().max() + 1e-6


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_named_parts_make_up_a_block(architecture: str) -> None:
    """One block recomputed in fp64 from the adapter's names alone: a swapped q and k or fc1 and fc2 would show."""
    adapter, model, inputs = adapter_by_name(architecture), tower(architecture).double(), tower_inputs(architecture)
    shape = adapter.shape(vision_config(architecture))
    with torch.no_grad():
        x, stream = adapter.embed(model, double(inputs))
        for block in adapter.blocks(model):
            expected = adapter.run_block(block, x, stream)
            weight, bias = adapter.qkv(block)
            assert weight.shape == (3, shape.num_heads, shape.head_dim, shape.width)
            q, k, v = torch.einsum("td,phed->pthe", block.norm1(x), weight) + bias[:, None]
            z = attention(rotated(q, stream), rotated(k, stream), v, stream)
            middle = x + block.out_proj(z.flatten(1))
            assert block.fc1.weight.shape == (shape.ffn_width, shape.width)
            ffn = block.ffn(block.norm2(middle))
            hidden = block.fc1(block.norm2(middle))
            assert torch.allclose(ffn, block.fc2(hidden * torch.sigmoid(1.702 * hidden)), rtol=0, atol=1e-12)
            # transformers rotates in float32 whatever the dtype
            assert torch.allclose(middle + ffn, expected, rtol=0, atol=1e-5)
            x = expected


def attention(q: Tensor, k: Tensor, v: Tensor, stream: Stream) -> Tensor:
    z = torch.empty_like(q)
    for start, stop in zip(stream.cu_seqlens, stream.cu_seqlens[1:], strict=False):
        scores = torch.einsum("the,she->hts", q[start:stop], k[start:stop]) * q.shape[-1] ** -0.5
        z[start:stop] = torch.einsum("hts,she->the", scores.softmax(-1), v[start:stop])
    return z


def rotated(x: Tensor, stream: Stream) -> Tensor:
    if stream.cos is None or stream.sin is None:
        return x
    assert stream.cos.dtype == torch.float32
    first, second = x.chunk(2, dim=-1)
    return x * stream.cos[:, None] + torch.cat((-second, first), dim=-1) * stream.sin[:, None]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_full_models_tower_is_found_and_replaced(architecture: str) -> None:
    adapter = adapter_by_name(architecture)
    config = vlm_config(architecture)
    vlm = AutoModelForImageTextToText.from_config(config)
    assert adapter_for(config) is adapter
    assert adapter_for(adapter.vision_config(config)) is adapter
    old, new = adapter.tower_of(vlm), tower(architecture)
    assert adapter.shape(adapter.vision_config(config)) == adapter.shape(old.config)
    assert adapter.tower_of(old) is old
    adapter.replace_tower(vlm, new)
    assert adapter.tower_of(vlm) is new
    assert adapter.tower_of(vlm.model) is new
    assert not any(module is old for module in vlm.modules())


@pytest.mark.parametrize(("layers", "used"), [(-2, 2), (-1, 3), (3, 3), (1, 1), (-4, 0), ([-3, 2], 2), ([1, 3], 3)])
def test_llava_reads_nothing_from_the_blocks_that_are_not_used(layers: int | list[int], used: int) -> None:
    config = vlm_config("clip")
    config.vision_feature_layer = layers
    adapter = adapter_by_name("clip")
    assert adapter.used_blocks(config) == used
    vlm = AutoModelForImageTextToText.from_config(config).eval()
    inputs = tower_inputs("clip")

    def features() -> Tensor:
        with torch.no_grad():
            found: Tensor = torch.cat(list(vlm.model.get_image_features(**inputs).pooler_output))
        return found

    def change(blocks: Sequence[SourceBlock]) -> None:
        for block in blocks:
            block.fc2.bias.data.normal_()

    blocks, before = adapter.blocks(adapter.tower_of(vlm)), features()
    change(blocks[used:])
    assert torch.equal(features(), before)
    change(blocks[:used][-1:])
    assert torch.equal(features(), before) == (used == 0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_tower_alone_uses_all_blocks(architecture: str) -> None:
    assert adapter_by_name(architecture).used_blocks(vision_config(architecture)) == 3
    if architecture == "qwen2_vl":
        assert adapter_by_name(architecture).used_blocks(vlm_config(architecture)) == 3


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ends_state_holds_every_parameter_outside_the_blocks(architecture: str) -> None:
    adapter, model = adapter_by_name(architecture), tower(architecture)
    inside = {id(p) for block in adapter.blocks(model) for p in block.module.parameters()}
    outside = [p for p in model.parameters() if id(p) not in inside]
    state = adapter.ends_state(model)
    assert sum(t.numel() for t in state.values()) == sum(p.numel() for p in outside)
    assert not any(t.requires_grad for t in state.values())
    assert {t.untyped_storage().data_ptr() for t in state.values()} == {p.untyped_storage().data_ptr() for p in outside}


def test_what_is_not_supported_is_said() -> None:
    with pytest.raises(InfopruneError, match=r"'bert' is not supported; supported are qwen2_vl, .*clip_vision_model"):
        adapter_for(BertConfig())
    with pytest.raises(InfopruneError, match="'llava' carries a 'siglip_vision_model' tower"):
        adapter_for(LlavaConfig(vision_config=SiglipVisionConfig(), text_config=AutoConfig.for_model("llama")))
    with pytest.raises(InfopruneError, match="unknown tower architecture 'vit'"):
        adapter_by_name("vit")
    with pytest.raises(InfopruneError, match="Linear has no clip tower"):
        adapter_by_name("clip").tower_of(nn.Linear(2, 2))
    with pytest.raises(InfopruneError, match="unmodified CLIPVisionModel, not a Linear"):
        adapter_by_name("clip").blocks(nn.Linear(2, 2))
    with pytest.raises(InfopruneError, match="no tensor 'image_grid_thw'"):
        adapter_by_name("qwen2_vl").tower_inputs({"pixel_values": torch.zeros(4, 3)})
    ragged = Stream(cu_seqlens=(0, 3, 5))
    clip = adapter_by_name("clip")
    with pytest.raises(InfopruneError, match="differ in length"):
        clip.run_block(clip.blocks(tower("clip"))[0], torch.zeros(5, 42), ragged)
