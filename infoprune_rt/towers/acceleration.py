"""transformers' own vision tower on our blocks, switched on and off in place.

The tower stays where it is: the same module with its own parameters, names and hooks. Only what its call does changes,
so whatever transformers, optimisers and checkpoints do with the model holds as before.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig, PreTrainedModel

from infoprune_rt import checkpoint
from infoprune_rt.errors import InfopruneError
from infoprune_rt.runtime.blocks import dense_specs
from infoprune_rt.runtime.encoder import CompactEncoder, is_watched
from infoprune_rt.runtime.seen_weights import SeenWeights
from infoprune_rt.towers import adapter_for
from infoprune_rt.towers.base import TowerAdapter

_PRECOMPUTED = ("cu_seqlens", "max_seqlen", "position_ids")  # what transformers' pass takes instead of grid_thw
_OTHER_FORWARD = "its tower's forward was replaced by something else, as offloading does; undo that first"
_CAPTURING = "transformers.utils.output_capturing"  # its hooks stay on the blocks once hidden states were asked for


def accelerate(model: PreTrainedModel) -> PreTrainedModel:
    """Run the model's vision tower on the fastest backend from now on; returns the same model.

    model: a full Qwen2-VL or LLaVA-1.5 (CLIP) model of transformers, its backbone, or such a tower alone, dense. A
    compact tower runs on our blocks anyway and is left as it is. Anything else raises InfopruneError.

    The weights stay the tower's own, and are shared: what is written to them counts from the next call on (written
    through ``.data``, it is not seen: call ``restore`` and ``accelerate`` again). Only
    CLIP's q, k and v are copied, because our blocks hold them joined: a quarter of its blocks' weights. The kernels'
    packed copies come on top (``CpuEngine``).

    transformers' own pass answers where gradients are wanted, in training mode, under autocast and ``torch.compile``,
    when asked for attention maps, and while modules inside the tower are hooked, replaced or of several dtypes.
    """
    with _told_of(model):
        adapter, tower = _find_tower(model)
        if not isinstance(tower, CompactEncoder) and not _is_accelerated(tower):
            vars(tower)["forward"] = _AcceleratedForward(adapter, tower)
    return model


def restore(model: PreTrainedModel) -> PreTrainedModel:
    """Undo ``accelerate``: the tower's pass is transformers' own again; returns the same model.

    A model that is not accelerated is left as it is; one that never could be raises InfopruneError.
    """
    with _told_of(model):
        _, tower = _find_tower(model)
        if _is_accelerated(tower):
            del vars(tower)["forward"]
        elif "forward" in vars(tower):
            raise InfopruneError(_OTHER_FORWARD)
    return model


@contextmanager
def _told_of(model: object) -> Iterator[None]:
    try:
        yield
    except InfopruneError as error:
        raise InfopruneError(f"{type(model).__name__} cannot be accelerated: {error}") from error


def _find_tower(model: Any) -> tuple[TowerAdapter, nn.Module]:
    config = getattr(model, "config", None)
    if not isinstance(config, PretrainedConfig):
        raise InfopruneError("it is no transformers model")
    adapter = adapter_for(config)
    tower = adapter.tower_of(model)
    if not isinstance(tower, CompactEncoder) and type(tower) is not adapter.source_class:
        raise InfopruneError(f"its tower is a {type(tower).__name__}, not a {adapter.source_class.__name__}")
    return adapter, tower


def _is_accelerated(tower: nn.Module) -> bool:
    return isinstance(tower.forward, _AcceleratedForward)


class _AcceleratedForward:
    """An accelerated tower's ``forward``: the call of a compact tower that holds the same weights.

    It is an object, and no closure, so that a copied or unpickled tower gets one of its own.
    """

    def __init__(self, adapter: TowerAdapter, tower: nn.Module) -> None:
        if "forward" in vars(tower):
            raise InfopruneError(_OTHER_FORWARD)
        self._adapter, self._tower = adapter, tower
        with torch.device("meta"):
            self._classes = frozenset(map(type, adapter.build(copy.deepcopy(tower.config)).modules()))
        if (found := self._unusual()) is not None:
            raise InfopruneError(f"its tower is not as transformers builds it: {found}")
        self._snapshot: _Snapshot | None = _Snapshot(adapter, tower)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the tower's class defines it."""
        if self._is_for_transformers(args, kwargs):
            self._snapshot = None  # not every optimiser's step would be seen afterwards
            return type(self._tower).forward(self._tower, *args, **kwargs)
        return self.compact(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: what was made of the weights is made again where it is needed."""
        return self.__dict__ | {"_snapshot": None}

    @property
    def compact(self) -> CompactEncoder:
        """The compact tower with the dense one's present weights."""
        snapshot = self._snapshot  # read once: another thread may replace it meanwhile
        if snapshot is None or not snapshot.is_current(self._tower):
            snapshot = self._snapshot = _Snapshot(self._adapter, self._tower)
        return snapshot.compact

    def _is_for_transformers(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        tower: Any = self._tower
        tensors = (value for value in (*args, *kwargs.values(), *tower.parameters()) if isinstance(value, Tensor))
        return (
            torch.compiler.is_compiling()
            or is_watched()
            or tower.training
            or torch.is_autocast_enabled(tower.device.type)
            or (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
            or bool(_first(kwargs.get("output_attentions"), tower.config.output_attentions))
            or any(kwargs.get(name) is not None for name in _PRECOMPUTED)
            or self._unusual() is not None
        )

    def _unusual(self) -> str | None:
        """What keeps our blocks from standing in for this tower's, if anything does."""
        for name, module in self._tower.named_modules():
            if type(module) not in self._classes:
                return f"{name} is a {type(module).__name__}"
            if name and ("forward" in vars(module) or _is_hooked(module)):
                return f"{name} has hooks or a forward of its own"
        kinds = {(parameter.dtype, parameter.device) for parameter in self._tower.parameters()}
        return None if len(kinds) == 1 else "its parameters differ in dtype or device"


def _first(asked: bool | None, default: bool | None) -> bool | None:
    return default if asked is None else asked


def _is_hooked(module: nn.Module) -> bool:
    """Whether anyone wants to see or change what passes through."""
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    return any(hook.__module__ != _CAPTURING for hook in hooks)


class _Snapshot:
    """The compact tower of a dense tower's weights at one moment."""

    def __init__(self, adapter: TowerAdapter, tower: nn.Module) -> None:
        self._made_from = SeenWeights(tower)
        config: Any = tower.config
        specs = [spec.to_dict() for spec in dense_specs(adapter.shape(config))]
        compact = checkpoint.compact_tower(adapter.compact_config(config, specs))
        assert isinstance(compact, CompactEncoder)
        with torch.inference_mode(False):
            state = adapter.dense_state(tower)
            checkpoint.match_state(compact, state, "the tower's weights")
            compact.load_state_dict(state, assign=True)
        compact.config = config  # the live one, whose output_hidden_states a caller may change
        self.compact: CompactEncoder = compact.requires_grad_(False).eval()

    def is_current(self, tower: nn.Module) -> bool:
        """Whether the tower still holds the weights of then."""
        return self._made_from.are_those_of(tower)
