"""Runtime for information-theoretically pruned vision towers.

Importing it teaches transformers' ``AutoConfig`` and ``AutoModel`` the compact towers.
"""

from __future__ import annotations

from transformers import AutoConfig, AutoModel

from infoprune_rt.towers import ADAPTERS
from infoprune_rt.towers.acceleration import accelerate, restore
from infoprune_rt.vlm import CompactVLMConfig, TowerOfVLM, load_vlm

__all__ = ["accelerate", "load_vlm", "restore"]

for _adapter in ADAPTERS:
    AutoConfig.register(_adapter.compact_config_class.model_type, _adapter.compact_config_class)
    AutoModel.register(_adapter.compact_config_class, _adapter.compact_class)
AutoConfig.register(CompactVLMConfig.model_type, CompactVLMConfig)
AutoModel.register(CompactVLMConfig, TowerOfVLM)
