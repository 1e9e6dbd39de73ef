"""lmms-eval's interface to models, as its public source has it in version 0.7.3, for machines without lmms-eval.

What lmms-eval itself can be imported for is taken from there (``interface``): then the tests hold against the real one.
"""

from __future__ import annotations

import abc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType

import pytest


@dataclass(frozen=True)
class ModelManifest:
    """lmms_eval/models/registry_v2.py"""

    model_id: str
    simple_class_path: str | None = None
    chat_class_path: str | None = None
    aliases: tuple[str, ...] = ()


class lmms(abc.ABC):  # noqa: N801  # its name there
    """lmms_eval/api/model.py"""

    is_simple: bool = True

    def __init__(self) -> None:
        self._rank = 0
        self._world_size = 1
        self.task_dict: dict = {}

    @abc.abstractmethod
    def loglikelihood(self, requests): ...

    @abc.abstractmethod
    def generate_until(self, requests): ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests): ...

    @classmethod
    def create_from_arg_string(cls, arg_string, additional_config=None):
        arguments = dict(pair.split("=", 1) for pair in arg_string.split(",") if pair)
        return cls(
            **arguments, **{name: value for name, value in (additional_config or {}).items() if value is not None}
        )

    @property
    def rank(self):
        return self._rank

    @property
    def world_size(self):
        return self._world_size


@dataclass
class Instance:
    """What a model sees of lmms_eval/api/instance.py: for chat models (context, doc_to_messages, generation settings,
    document's number, task, split)."""

    arguments: tuple

    @property
    def args(self):
        return self.arguments


@contextmanager
def interface() -> Iterator[None]:
    """lmms_eval's two modules in ``sys.modules``, its own or the above."""
    with pytest.MonkeyPatch.context() as patch:
        try:
            import lmms_eval.api.model
            import lmms_eval.models.registry_v2  # noqa: F401
        except ImportError:
            contents = {"lmms_eval.api.model": lmms, "lmms_eval.models.registry_v2": ModelManifest}
            for name in ("lmms_eval", "lmms_eval.api", "lmms_eval.models", *contents):
                patch.setitem(sys.modules, name, ModuleType(name))
            for name, thing in contents.items():
                setattr(sys.modules[name], thing.__name__, thing)
        yield
        sys.modules.pop("infoprune_rt.evaluation.lmms_eval", None)
