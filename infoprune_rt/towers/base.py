"""What the rest of the project may ask of a vision tower, whatever its architecture.

An adapter only *names* things: the blocks, the head slices, the output projection, the FFN, the
norms, the position scheme, and what comes before and after the blocks. No algorithm lives here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from infoprune_rt.errors import InfopruneError

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from infoprune_rt.runtime.encoder import CompactEncoder


@dataclass(frozen=True)
class TowerShape:
    """Sizes of a *dense* tower. ``width`` is d, ``ffn_width`` is m; num_heads * head_dim = width."""

    num_blocks: int
    width: int
    num_heads: int
    head_dim: int
    ffn_width: int
    activation: str
    norm_eps: float


@dataclass(frozen=True)
class Stream:
    """The residual stream of a pack of images: everything the blocks need besides x (T x d).

    ``cu_seqlens`` lives on the host: sequence i is rows ``cu_seqlens[i]:cu_seqlens[i + 1]``.
    ``cos`` and ``sin`` (T x head_dim, float32) are None for towers without rotary positions.
    """

    cu_seqlens: tuple[int, ...]
    cos: Tensor | None = None
    sin: Tensor | None = None


@dataclass(frozen=True)
class SourceBlock:
    """The named parts of one block of an unmodified tower; the modules are live, not copies."""

    module: nn.Module
    norm1: nn.LayerNorm
    norm2: nn.LayerNorm
    out_proj: nn.Linear  # its input is Z: the concatenated head outputs, T x (H * head_dim)
    ffn: nn.Module  # called with norm2's output; its output is added to the residual
    fc1: nn.Linear
    fc2: nn.Linear


class TowerAdapter(ABC):
    """One per architecture; stateless, so that a single instance serves the process."""

    architecture: ClassVar[str]  # its name in plans and compact checkpoints
    vision_model_types: ClassVar[tuple[str, ...]]  # model_type of the tower's own config
    vlm_model_types: ClassVar[tuple[str, ...]]  # model_type of the full models that carry it
    tower_attribute: ClassVar[str]  # what a full model's backbone calls its tower
    depth_field: ClassVar[str] = "num_hidden_layers"  # what the vision config calls its number of blocks
    checkpoint_prefixes: ClassVar[tuple[str, ...]]  # where a full model's files keep the tower
    source_class: ClassVar[type[nn.Module]]  # the unmodified tower
    compact_class: ClassVar[type[CompactEncoder]]
    compact_config_class: ClassVar[type[PretrainedConfig]]

    def vision_config(self, config: PretrainedConfig) -> PretrainedConfig:
        """The tower's config inside a full model's config (or the config itself if it is one)."""
        inner = config.vision_config if config.model_type in self.vlm_model_types else config
        if inner.model_type not in (*self.vision_model_types, self.compact_config_class.model_type):
            raise InfopruneError(
                f"model type {config.model_type!r} carries a {inner.model_type!r} tower, "
                f"but {self.architecture} works on {', '.join(self.vision_model_types)}"
            )
        return inner

    def tower_of(self, model: nn.Module) -> nn.Module:
        """The tower inside a full model; the model itself if it is the tower."""
        if isinstance(model, (self.source_class, self.compact_class)):
            return model
        tower: nn.Module = getattr(self._holder(model), self.tower_attribute)
        return tower

    def replace_tower(self, vlm: nn.Module, tower: nn.Module) -> None:
        """Put ``tower`` (dense or compact) in the place of the full model's tower."""
        setattr(self._holder(vlm), self.tower_attribute, tower)

    def _holder(self, model: nn.Module) -> nn.Module:
        """The module whose attribute the tower is: the backbone below the language-model head, or the backbone."""
        for holder in (getattr(model, "model", None), model):
            if isinstance(holder, nn.Module) and isinstance(getattr(holder, self.tower_attribute, None), nn.Module):
                return holder
        raise InfopruneError(
            f"{type(model).__name__} has no {self.architecture} tower: neither .{self.tower_attribute} nor "
            f".model.{self.tower_attribute} is there"
        )

    def _dense(self, tower: nn.Module) -> Any:
        """``tower``, checked to be unmodified (typed loosely: its attributes are the architecture's own)."""
        if not isinstance(tower, self.source_class):
            raise InfopruneError(f"expected an unmodified {self.source_class.__name__}, not a {type(tower).__name__}")
        return tower

    def compact_config(self, vision_config: PretrainedConfig, blocks: Sequence[Mapping[str, Any]]) -> PretrainedConfig:
        """The compact tower's config: the dense tower's sizes and one ``BlockSpec`` (as a dict) per block."""
        dropped = ("model_type", "architectures", "transformers_version", "_name_or_path")
        values = {name: value for name, value in vision_config.to_dict().items() if name not in dropped}
        return self.compact_config_class(**values | {"blocks": [dict(block) for block in blocks]})

    def build(self, vision_config: PretrainedConfig) -> nn.Module:
        """An unmodified transformers tower with this config (on the current default device)."""
        return self.source_class(vision_config)

    @abstractmethod
    def shape(self, vision_config: PretrainedConfig) -> TowerShape:
        """The dense sizes, read from the tower's config alone."""

    def used_blocks(self, config: PretrainedConfig) -> int:
        """How many blocks, from the front, a model with this config reads from; a tower alone uses all of them."""
        return self.shape(self.vision_config(config)).num_blocks

    @abstractmethod
    def blocks(self, tower: nn.Module) -> Sequence[SourceBlock]:
        """The blocks of an unmodified tower, front to back."""

    @abstractmethod
    def qkv(self, block: SourceBlock) -> tuple[Tensor, Tensor]:
        """Projection weight (3 x H x head_dim x d) and bias (3 x H x head_dim), in q, k, v order."""

    @abstractmethod
    def tower_inputs(self, features: Mapping[str, Any]) -> dict[str, Tensor]:
        """What ``tower(**inputs)`` takes, out of an image processor's output."""

    @abstractmethod
    def rows(self, vision_config: PretrainedConfig, image_processor: Any, height: int, width: int) -> int:
        """How many rows of the stream one picture of this size becomes, without preparing it."""

    @abstractmethod
    def embed(self, tower: nn.Module, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Stream]:
        """Everything before the first block: x (T x d, all images packed) and its stream."""

    @abstractmethod
    def run_block(self, block: SourceBlock, x: Tensor, stream: Stream) -> Tensor:
        """One unmodified block on a packed stream: T x d -> T x d."""

    @abstractmethod
    def ends_state(self, tower: nn.Module) -> dict[str, Tensor]:
        """Tensors before and after the blocks, detached, under the compact tower's names."""

    def attention_state(self, block: SourceBlock, heads: Sequence[int] | None = None) -> dict[str, Tensor]:
        """``norm1``, ``qkv`` (3 h D x d) and ``out`` (d x h D) of the given heads, detached.

        Without ``heads`` all of them, sharing the block's memory where the layouts agree.
        """
        weight, bias = (tensor.detach() for tensor in self.qkv(block))
        out = block.out_proj.weight.detach()
        if heads is not None:
            columns = out.reshape(len(out), -1, weight.shape[2])
            kept = list(heads)
            weight, bias, out = weight[:, kept], bias[:, kept], columns[:, kept].flatten(1)
        return layer_state("norm1", block.norm1) | {
            "qkv.weight": weight.flatten(0, 2),
            "qkv.bias": bias.flatten(),
            "out.weight": out,
            "out.bias": block.out_proj.bias.detach(),
        }

    def dense_state(self, tower: nn.Module) -> dict[str, Tensor]:
        """The compact tower's state of an unmodified tower from which nothing is removed, detached.

        It shares the tower's memory where the layouts agree; ``qkv`` decides whether projections are copies.
        """
        state = self.ends_state(tower)
        for i, block in enumerate(self.blocks(tower)):
            parts = self.attention_state(block) | layer_state("norm2", block.norm2)
            for layer, module in (("fc1", block.fc1), ("fc2", block.fc2)):
                parts |= {f"ffn.{layer}_weight": module.weight.detach(), f"ffn.{layer}_bias": module.bias.detach()}
            state |= {f"blocks.{i}.{name}": tensor for name, tensor in parts.items()}
        return state


def layer_state(name: str, layer: nn.Linear | nn.LayerNorm) -> dict[str, Tensor]:
    """A layer's weight and bias, detached, under the compact tower's name for it."""
    return {f"{name}.weight": layer.weight.detach(), f"{name}.bias": layer.bias.detach()}


def feature(features: Mapping[str, Any], name: str) -> Tensor:
    """One tensor of an image processor's output."""
    value = features.get(name)
    if not isinstance(value, Tensor):
        raise InfopruneError(f"the image processor's output has no tensor {name!r}; was it called with images?")
    return value
