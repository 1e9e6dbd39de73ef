"""Vision towers: one adapter per architecture."""

from __future__ import annotations

from transformers import PretrainedConfig

from infoprune_rt.errors import InfopruneError
from infoprune_rt.towers.base import TowerAdapter
from infoprune_rt.towers.clip import CLIPAdapter
from infoprune_rt.towers.qwen2_vl import Qwen2VLAdapter

__all__ = ["ADAPTERS", "adapter_by_name", "adapter_for", "supported"]

ADAPTERS: tuple[TowerAdapter, ...] = (Qwen2VLAdapter(), CLIPAdapter())


def adapter_for(config: PretrainedConfig) -> TowerAdapter:
    """The adapter for a full model's config or for a tower's own, dense or compact."""
    for adapter in ADAPTERS:
        compact = adapter.compact_config_class.model_type
        if config.model_type in (*adapter.vlm_model_types, *adapter.vision_model_types, compact):
            adapter.vision_config(config)  # a LLaVA may carry a tower other than CLIP
            return adapter
    raise InfopruneError(f"model type {config.model_type!r} is not supported; supported are {supported()}")


def adapter_by_name(architecture: str) -> TowerAdapter:
    """The adapter that plans and compact checkpoints name by ``architecture``."""
    for adapter in ADAPTERS:
        if adapter.architecture == architecture:
            return adapter
    names = ", ".join(adapter.architecture for adapter in ADAPTERS)
    raise InfopruneError(f"unknown tower architecture {architecture!r}; known are {names}")


def supported() -> str:
    """The model types that can be read, for messages."""
    return ", ".join(name for a in ADAPTERS for name in a.vlm_model_types + a.vision_model_types)
