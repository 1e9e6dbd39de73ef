"""The CLIP tower (as in LLaVA-1.5): images of one size, a class token, learned absolute positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub.dataclasses import strict
from torch import Tensor, nn
from transformers import CLIPVisionConfig, CLIPVisionModel, PretrainedConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from infoprune_rt.errors import InfopruneError
from infoprune_rt.runtime.encoder import CompactEncoder
from infoprune_rt.runtime.packing import sequence_bounds
from infoprune_rt.towers.base import SourceBlock, Stream, TowerAdapter, TowerShape, feature, layer_state
from infoprune_rt.towers.outputs import HiddenStatesWanted, refuse_attentions, run_blocks, tower_output


@strict
class CompactCLIPConfig(CLIPVisionConfig):  # type: ignore[misc]  # transformers is not followed by mypy
    """The dense tower's config and one ``BlockSpec`` (as a dict) per block."""

    model_type = "infoprune_clip_vision"

    blocks: list[dict[str, Any]] = field(default_factory=list)


class CompactCLIPTower(CompactEncoder):
    """Takes the place of ``CLIPVisionModel``: same call, same output class, same hidden states."""

    config_class = CompactCLIPConfig
    main_input_name = "pixel_values"
    input_modalities = "image"
    _input_embed_layer = "patch_embed"

    def __init__(self, config: PretrainedConfig) -> None:
        super().__init__(config, tower_shape(config))
        width, eps = config.hidden_size, config.layer_norm_eps
        self.grid = config.image_size // config.patch_size
        self.patch_embed = nn.Linear(config.num_channels * config.patch_size**2, width, bias=False)
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.position_embedding = nn.Parameter(torch.zeros(self.grid**2 + 1, width))
        self.pre_norm = nn.LayerNorm(width, eps=eps)
        self.post_norm = nn.LayerNorm(width, eps=eps)
        self.post_init()

    def forward(
        self,
        pixel_values: Tensor,
        interpolate_pos_encoding: bool = False,
        *,
        output_hidden_states: HiddenStatesWanted = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPooling | tuple[Any, ...]:
        """Encode a batch of images of one size.

        pixel_values: B x C x height x width in any floating dtype; the config's image size unless
        ``interpolate_pos_encoding`` stretches the position table to another one.
        Returns ``last_hidden_state`` (B x N x d), ``pooler_output`` (B x d, the normalised class token) and, if asked
        for, ``hidden_states`` (B x N x d each), in the tower's dtype. Other keyword arguments are accepted and not
        used.
        """
        refuse_attentions(kwargs)
        embedded = self._embed(pixel_values, interpolate_pos_encoding)
        images, rows = embedded.shape[:2]
        stream = Stream(sequence_bounds([rows] * images))
        last, states = run_blocks(self, embedded.flatten(0, 1), stream, output_hidden_states)
        last = last.view_as(embedded)
        if states is not None:
            states = tuple(state if state is None else state.view_as(embedded) for state in states)
        return tower_output(self.config, last, self.post_norm(last[:, 0]), states, return_dict)

    def _embed(self, pixel_values: Tensor, interpolate: bool) -> Tensor:
        config = self.config
        size = (config.num_channels, config.image_size, config.image_size)
        fixed = 1 if interpolate else 3  # of the sizes, how many the image must share
        if pixel_values.ndim != 4 or len(pixel_values) == 0 or pixel_values.shape[1 : 1 + fixed] != size[:fixed]:
            raise InfopruneError(
                f"this tower takes batches of {size} images (channels, height, width), not {tuple(pixel_values.shape)}"
            )
        patches, grid = cut_patches(pixel_values.to(self.dtype), config.patch_size)
        x = self.linear(self.patch_embed, patches.flatten(0, 1)).view(*patches.shape[:2], -1)
        x = torch.cat((self.class_embedding.expand(len(x), 1, -1), x), dim=1)
        normed: Tensor = self.pre_norm(x + self._positions(grid))
        return normed

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        """The position table, N x d; bicubically stretched when the grid is not the trained one."""
        table = self.position_embedding
        if grid == (self.grid, self.grid):
            return table
        planes = table[1:].view(1, self.grid, self.grid, -1).permute(0, 3, 1, 2)
        stretched = F.interpolate(planes, size=grid, mode="bicubic", align_corners=False)
        return torch.cat((table[:1], stretched.flatten(2)[0].T))


def cut_patches(pixels: Tensor, size: int) -> tuple[Tensor, tuple[int, int]]:
    """B x C x height x width to B x patches x (C * size^2), rows first, and the grid (patch rows, patch columns).

    What is left over at the right and bottom edges is dropped, as a strided convolution does.
    """
    rows, columns = pixels.shape[2] // size, pixels.shape[3] // size
    cropped = pixels[:, :, : rows * size, : columns * size]
    tiles = cropped.reshape(*pixels.shape[:2], rows, size, columns, size)
    return tiles.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2), (rows, columns)


def tower_shape(config: PretrainedConfig) -> TowerShape:
    """The dense sizes that a CLIP tower's config states."""
    return TowerShape(
        num_blocks=config.num_hidden_layers,
        width=config.hidden_size,
        num_heads=config.num_attention_heads,
        head_dim=config.hidden_size // config.num_attention_heads,
        ffn_width=config.intermediate_size,
        activation=config.hidden_act,
        norm_eps=config.layer_norm_eps,
    )


class CLIPAdapter(TowerAdapter):
    """Names the parts of transformers' ``CLIPVisionModel``.

    A batch of B images is one packed stream of B * N rows, N = patches per image + the class token.
    """

    architecture = "clip"
    vision_model_types = ("clip_vision_model",)
    vlm_model_types = ("llava",)
    tower_attribute = "vision_tower"
    checkpoint_prefixes = (
        "model.vision_tower.vision_model.",
        "model.vision_tower.",
        "vision_tower.vision_model.",
        "vision_tower.",
        "vision_model.",
    )
    source_class = CLIPVisionModel
    compact_class = CompactCLIPTower
    compact_config_class = CompactCLIPConfig

    def shape(self, vision_config: PretrainedConfig) -> TowerShape:
        return tower_shape(vision_config)

    def used_blocks(self, config: PretrainedConfig) -> int:
        """As in ``TowerAdapter``. LLaVA reads chosen hidden states; number i is what block i takes in."""
        depth = super().used_blocks(config)
        if config.model_type not in self.vlm_model_types:
            return depth
        layers = config.vision_feature_layer
        return max(layer % (depth + 1) for layer in ([layers] if isinstance(layers, int) else layers))

    def blocks(self, tower: nn.Module) -> Sequence[SourceBlock]:
        return [
            SourceBlock(
                module=layer,
                norm1=layer.layer_norm1,
                norm2=layer.layer_norm2,
                out_proj=layer.self_attn.out_proj,
                ffn=layer.mlp,
                fc1=layer.mlp.fc1,
                fc2=layer.mlp.fc2,
            )
            for layer in self._dense(tower).encoder.layers
        ]

    def qkv(self, block: SourceBlock) -> tuple[Tensor, Tensor]:
        attention: Any = block.module.self_attn
        sizes = (3, attention.num_heads, attention.head_dim)
        projections = (attention.q_proj, attention.k_proj, attention.v_proj)
        weight = torch.stack([projection.weight for projection in projections])
        bias = torch.stack([projection.bias for projection in projections])
        return weight.view(*sizes, -1), bias.view(sizes)

    def tower_inputs(self, features: Mapping[str, Any]) -> dict[str, Tensor]:
        return {"pixel_values": feature(features, "pixel_values")}

    def rows(self, vision_config: PretrainedConfig, image_processor: Any, height: int, width: int) -> int:
        return int((vision_config.image_size // vision_config.patch_size) ** 2 + 1)

    def embed(self, tower: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Stream]:
        dense = self._dense(tower)
        x = dense.pre_layrnorm(dense.embeddings(inputs["pixel_values"]))
        return x.flatten(0, 1), Stream(tuple(range(0, x.shape[0] * x.shape[1] + 1, x.shape[1])))

    def run_block(self, block: SourceBlock, x: Tensor, stream: Stream) -> Tensor:
        images = len(stream.cu_seqlens) - 1
        rows = stream.cu_seqlens[1]
        if stream.cu_seqlens != tuple(range(0, images * rows + 1, rows)):
            raise InfopruneError(
                "a CLIP tower takes images of one size only, but the stream's sequences differ in length"
            )
        y: Tensor = block.module(x.view(images, rows, -1), attention_mask=None)
        return y.flatten(0, 1)

    def ends_state(self, tower: nn.Module) -> dict[str, Tensor]:
        dense = self._dense(tower)
        embeddings = dense.embeddings
        return {
            "patch_embed.weight": embeddings.patch_embedding.weight.detach().flatten(1),
            "class_embedding": embeddings.class_embedding.detach(),
            "position_embedding": embeddings.position_embedding.weight.detach(),
            **layer_state("pre_norm", dense.pre_layrnorm),
            **layer_state("post_norm", dense.post_layernorm),
        }
