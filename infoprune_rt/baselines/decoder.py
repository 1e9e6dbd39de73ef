"""What YOPO may ask of a language decoder, whatever its architecture. An adapter names things; no algorithm is here.

Both decoders have Llama's parts: ``layer.self_attn.{q,k,v,o}_proj``, ``layer.mlp.{gate,up,down}_proj`` and two norms.
They differ in the ids of visual tokens, in how these lie on a grid, and in the rotary tables.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, PretrainedConfig, PreTrainedModel
from transformers import Qwen2VLForConditionalGeneration as Qwen2VL

from infoprune_rt.errors import InfopruneError

Frames = tuple[tuple[int, int], ...]  # rows and columns of every picture (or video frame), in the prompt's order


@dataclass(frozen=True)
class DecoderShape:
    """Sizes of a language decoder. ``width`` is d, ``ffn_width`` is m; a query head reads KV head ``h // group``."""

    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn_width: int

    @classmethod
    def of(cls, config: PretrainedConfig) -> DecoderShape:
        """The decoder of a full model's config."""
        text = config.get_text_config(decoder=True)
        heads, width = text.num_attention_heads, text.hidden_size
        return cls(
            layers=text.num_hidden_layers,
            width=width,
            heads=heads,
            kv_heads=text.num_key_value_heads or heads,
            head_dim=getattr(text, "head_dim", None) or width // heads,
            ffn_width=text.intermediate_size,
        )

    @property
    def group(self) -> int:
        """Query heads that share a KV head."""
        return self.heads // self.kv_heads


class Decoder(ABC):
    """A live model's decoder; the modules are the model's own."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.config = model.config
        self.inner: nn.Module = model.model  # called with the token ids
        self.text_model: PreTrainedModel = model.model.language_model
        self.layers: list[Any] = list(self.text_model.layers)
        self.shape = DecoderShape.of(model.config)

    @abstractmethod
    def is_visual(self, input_ids: Tensor) -> Tensor:
        """Bool of the same shape: which tokens stand for a picture's features."""

    @abstractmethod
    def frames(self, visual: Tensor, position_ids: Tensor | None) -> Frames:
        """The grids on which a prompt's visual tokens lie.

        visual: their places in the prompt, [Tv]. position_ids: as the decoder gets them, [.., 1, T] or None.
        """

    def rotary(self, position_embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """cos and sin as one table each, [T, head_dim]."""
        cos, sin = position_embeddings
        return cos[0], sin[0]


class _Qwen2VL(Decoder):
    def is_visual(self, input_ids: Tensor) -> Tensor:
        image, video = int(self.config.image_token_id), int(self.config.video_token_id)
        return (input_ids == image) | (input_ids == video)

    def frames(self, visual: Tensor, position_ids: Tensor | None) -> Frames:
        """Read off the M-RoPE positions, which are the places on the merged grid (h / 2 rows, w / 2 columns).

        They are the only trace of the grid that reaches the decoder when ``generate`` ran the tower beforehand.
        A frame's tokens share one temporal position, and lie together.
        """
        if position_ids is None or position_ids.ndim != 3:
            raise InfopruneError(
                "a neighbour window needs every visual token's place in its picture, but the prompt came without "
                "M-RoPE positions; pass the processor's image_grid_thw and mm_token_type_ids to the model"
            )
        time, rows, columns = position_ids[-3:, 0, visual].cpu()
        apart = (time.diff() != 0) | (visual.cpu().diff() != 1)
        ends = [*(apart.nonzero()[:, 0] + 1).tolist(), len(time)]
        starts = [0, *ends[:-1]]
        return tuple(
            (int(rows[end - 1] - rows[start]) + 1, int(columns[end - 1] - columns[start]) + 1)
            for start, end in zip(starts, ends, strict=True)
        )

    def rotary(self, position_embeddings: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        cos, sin = position_embeddings
        if cos.ndim == 3:
            return cos[0], sin[0]
        # From older transformers the three position tables come apart, [3, 1, T, head_dim].
        sections = 2 * self.text_model.config.rope_parameters["mrope_section"]
        return _composed(cos, sections), _composed(sin, sections)


def _composed(tables: Tensor, sections: list[int]) -> Tensor:
    parts = torch.split(tables[:, 0], sections, dim=-1)
    return torch.cat([part[i % 3] for i, part in enumerate(parts)], dim=-1)


class _Llava(Decoder):
    def is_visual(self, input_ids: Tensor) -> Tensor:
        return input_ids == int(self.config.image_token_id)

    def frames(self, visual: Tensor, position_ids: Tensor | None) -> Frames:
        """Every picture has the tower's own square grid of patches; the class token is not passed on."""
        vision = self.config.vision_config
        side = int(vision.image_size) // int(vision.patch_size)
        if self.config.vision_feature_select_strategy != "default" or len(visual) % side**2:
            raise InfopruneError(
                f"{len(visual)} visual tokens do not make whole pictures of {side} x {side} patches, which a neighbour "
                "window needs; leave the window out (radius=None)"
            )
        return ((side, side),) * (len(visual) // side**2)


def decoder_of(model: PreTrainedModel) -> Decoder:
    """The adapter for a live model; InfopruneError for a class that is not supported."""
    text = getattr(model.config, "text_config", None)
    known: dict[Any, tuple[type[Decoder], str]] = {
        Qwen2VL: (_Qwen2VL, "qwen2_vl_text"),
        LlavaForConditionalGeneration: (_Llava, "llama"),
    }
    text_type = getattr(text, "model_type", None)
    slides = "sliding_attention" in (getattr(text, "layer_types", None) or ())
    for model_class, (adapter, wanted) in known.items():
        if isinstance(model, model_class) and text_type == wanted and not slides:
            return adapter(model)
    raise InfopruneError(
        f"YOPO is not made for {type(model).__name__} with a {text_type!r} decoder; give a "
        "Qwen2VLForConditionalGeneration, or a LlavaForConditionalGeneration with a Llama decoder, without sliding "
        "windows"
    )
