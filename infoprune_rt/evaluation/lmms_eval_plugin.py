"""What lmms-eval finds under the entry point ``lmms_eval.models``: ``--model infoprune``."""

from __future__ import annotations

from typing import Any


def manifest() -> Any:
    """lmms-eval's ``ModelManifest`` (version 0.7). Its registry imports the class only when the model is asked for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="infoprune", chat_class_path="infoprune_rt.evaluation.lmms_eval.InfopruneModel")
