"""The Qwen2-VL tower: packed patches of any grid, axial rotary positions, a 2 x 2 merger at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VisionTransformerPretrainedModel

from infoprune_rt.errors import InfopruneError
from infoprune_rt.runtime.blocks import apply_linear
from infoprune_rt.runtime.encoder import CompactEncoder
from infoprune_rt.runtime.packing import pack_grids
from infoprune_rt.towers.base import SourceBlock, Stream, TowerAdapter, TowerShape, feature, layer_state
from infoprune_rt.towers.outputs import HiddenStatesWanted, refuse_attentions, run_blocks, tower_output

NORM_EPS = 1e-6  # fixed in the architecture, absent from its config


@strict
class CompactQwen2VLConfig(Qwen2VLVisionConfig):  # type: ignore[misc]  # transformers is not followed by mypy
    """The dense tower's config and one ``BlockSpec`` (as a dict) per block."""

    model_type = "infoprune_qwen2_vl_vision"

    blocks: list[dict[str, Any]] = field(default_factory=list)


class PatchMerger(nn.Module):
    """Joins merge_size x merge_size neighbouring patches into one row of the language model's width."""

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__()
        self.joined = config.embed_dim * config.spatial_merge_size**2
        self.norm = nn.LayerNorm(config.embed_dim, eps=NORM_EPS)
        self.fc1 = nn.Linear(self.joined, self.joined)
        self.fc2 = nn.Linear(self.joined, config.hidden_size)

    def forward(self, x: Tensor, linear: Callable[..., Tensor] = apply_linear) -> Tensor:
        """T x d -> T / merge_size^2 x the language model's width. linear: what applies a layer and its activation."""
        # In one expression: what has been used is let go before the next is made.
        return linear(self.fc2, linear(self.fc1, self.norm(x).view(-1, self.joined), "gelu"))


class CompactQwen2VLTower(CompactEncoder):
    """Takes the place of ``Qwen2VisionTransformerPretrainedModel``: same call, same output class."""

    config_class = CompactQwen2VLConfig
    main_input_name = "hidden_states"
    input_modalities = "image"
    _input_embed_layer = "patch_embed"
    rotary = True

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config, tower_shape(config))
        pixels = config.in_channels * config.temporal_patch_size * config.patch_size**2
        self.patch_embed = nn.Linear(pixels, config.embed_dim, bias=False)
        self.merger = PatchMerger(config)
        self.spatial_merge_size = config.spatial_merge_size
        self.post_init()

    def forward(
        self,
        hidden_states: Tensor,
        grid_thw: Tensor,
        *,
        output_hidden_states: HiddenStatesWanted = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling | tuple[Any, ...]:
        """Encode a pack of images.

        hidden_states: T x (C * frames * patch^2) pixels of all patches, as the image processor emits them, in any
        floating dtype. grid_thw: images x 3 integers (frames, patch rows, patch columns) with sum(t * h * w) = T.
        Returns ``last_hidden_state`` (T x d, before the merger) and ``pooler_output`` (T / merge^2 x the language
        model's width), both in the tower's dtype. Other keyword arguments are accepted and not used.
        """
        refuse_attentions(kwargs)
        x = self.linear(self.patch_embed, patch_rows(hidden_states, self.patch_embed.weight))
        last, states = run_blocks(self, x, pack(self.config, grid_thw, x), output_hidden_states)
        del x  # the merger needs the room
        return tower_output(self.config, last, self.merger(last, self.linear), states, return_dict)


def tower_shape(config: PretrainedConfig) -> TowerShape:
    """The dense sizes that a Qwen2-VL tower's config states."""
    return TowerShape(
        num_blocks=config.depth,
        width=config.embed_dim,
        num_heads=config.num_heads,
        head_dim=config.embed_dim // config.num_heads,
        ffn_width=int(config.embed_dim * config.mlp_ratio),
        activation=config.hidden_act,
        norm_eps=NORM_EPS,
    )


def embed_patches(pixels: Tensor, weight: Tensor) -> Tensor:
    """T patches of pixels to T x d rows.

    weight: d x (C * frames * patch^2). One matrix product, because the convolution's kernel covers a patch exactly
    and Conv3d is far slower.
    """
    return F.linear(patch_rows(pixels, weight), weight)


def patch_rows(pixels: Tensor, weight: Tensor) -> Tensor:
    """T patches of pixels as T rows in the dtype of the weight (d x (C * frames * patch^2)) that will embed them."""
    if pixels.numel() == 0 or pixels.numel() % weight.shape[1]:
        raise InfopruneError(
            f"pixels of shape {tuple(pixels.shape)} are not whole patches of {weight.shape[1]} numbers each; "
            "take them from the checkpoint's own image processor"
        )
    if pixels.device != weight.device:
        raise InfopruneError(
            f"the pixels are on {pixels.device}, but the tower is on {weight.device}; move one of them"
        )
    return pixels.to(weight.dtype).reshape(-1, weight.shape[1])


def pack(config: PretrainedConfig, grid_thw: Tensor, x: Tensor) -> Stream:
    """The stream of the images whose patches are the rows of ``x``."""
    return pack_grids(
        grid_thw,
        len(x),
        merge_size=config.spatial_merge_size,
        head_dim=config.embed_dim // config.num_heads,
        theta=config.rope_parameters["rope_theta"],
        device=x.device,
    )


class Qwen2VLAdapter(TowerAdapter):
    """Names the parts of transformers' ``Qwen2VisionTransformerPretrainedModel``."""

    architecture = "qwen2_vl"
    vision_model_types = ("qwen2_vl_vision",)
    vlm_model_types = ("qwen2_vl",)
    tower_attribute = "visual"
    depth_field = "depth"
    checkpoint_prefixes = ("model.visual.", "visual.")
    source_class = Qwen2VisionTransformerPretrainedModel
    compact_class = CompactQwen2VLTower
    compact_config_class = CompactQwen2VLConfig

    def shape(self, vision_config: PretrainedConfig) -> TowerShape:
        return tower_shape(vision_config)

    def blocks(self, tower: nn.Module) -> Sequence[SourceBlock]:
        return [
            SourceBlock(
                module=block,
                norm1=block.norm1,
                norm2=block.norm2,
                out_proj=block.attn.proj,
                ffn=block.mlp,
                fc1=block.mlp.fc1,
                fc2=block.mlp.fc2,
            )
            for block in self._dense(tower).blocks
        ]

    def qkv(self, block: SourceBlock) -> tuple[Tensor, Tensor]:
        attention: Any = block.module.attn
        sizes = (3, attention.num_heads, attention.head_dim)
        return attention.qkv.weight.view(*sizes, -1), attention.qkv.bias.view(*sizes)

    def tower_inputs(self, features: Mapping[str, Any]) -> dict[str, Tensor]:
        return {
            "hidden_states": feature(features, "pixel_values"),
            "grid_thw": feature(features, "image_grid_thw"),
        }

    def rows(self, vision_config: PretrainedConfig, image_processor: Any, height: int, width: int) -> int:
        return int(image_processor.get_number_of_image_patches(height, width))

    def embed(self, tower: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Stream]:
        dense = self._dense(tower)
        x = embed_patches(inputs["hidden_states"], dense.patch_embed.proj.weight.flatten(1))
        return x, pack(dense.config, inputs["grid_thw"], x)

    def run_block(self, block: SourceBlock, x: Tensor, stream: Stream) -> Tensor:
        cu_seqlens = torch.tensor(stream.cu_seqlens, dtype=torch.int32, device=x.device)
        y: Tensor = block.module(x, cu_seqlens=cu_seqlens, position_embeddings=(stream.cos, stream.sin))
        return y

    def ends_state(self, tower: nn.Module) -> dict[str, Tensor]:
        dense = self._dense(tower)
        merger = dense.merger
        modules = {"merger.norm": merger.ln_q, "merger.fc1": merger.mlp[0], "merger.fc2": merger.mlp[2]}
        state = {"patch_embed.weight": dense.patch_embed.proj.weight.detach().flatten(1)}
        for name, module in modules.items():
            state |= layer_state(name, module)
        return state
