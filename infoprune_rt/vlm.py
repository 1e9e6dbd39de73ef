"""Full models with a compact tower: transformers' own class, whose tower is ours."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, GenerationConfig, PretrainedConfig, PreTrainedModel

from infoprune_rt import checkpoint
from infoprune_rt.errors import InfopruneError
from infoprune_rt.hub import resolve_model_dir
from infoprune_rt.runtime.encoder import CompactEncoder
from infoprune_rt.shards import headers, iter_tensors, weight_map
from infoprune_rt.towers import adapter_for
from infoprune_rt.towers.base import TowerAdapter

_GENERATION_CONFIG = "generation_config.json"


def load_vlm(directory: Path | str, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """The transformers model of a compact checkpoint, in eval mode, ready to ``generate``.

    directory: a local directory or a hub id. dtype: converts all floating-point weights; None keeps each one's stored
    dtype, also where a checkpoint mixes several (whether such a model runs is up to its own code).
    """
    directory = resolve_model_dir(directory)
    manifest = checkpoint.verify(directory)
    config = checkpoint.read_vlm_config(directory, manifest)
    config.name_or_path = str(directory)
    vlm = _around_tower(config, checkpoint.load_rest_state(directory), dtype, directory)
    if (directory / _GENERATION_CONFIG).is_file():
        vlm.generation_config = GenerationConfig.from_pretrained(directory)
    compact_vlm(vlm, CompactEncoder.from_pretrained(directory, dtype=dtype))
    vlm.eval()
    return vlm


def compact_vlm(vlm: PreTrainedModel, tower: CompactEncoder) -> None:
    """Put a compact tower in the place of a full model's own.

    The model's ``save_pretrained`` writes a compact checkpoint from then on: transformers' own
    would write sliced weights beside a config that knows nothing of them.
    """
    adapter_for(vlm.config).replace_tower(vlm, tower)
    vlm.save_pretrained = partial(_save_pretrained, vlm)


class CompactVLMConfig(PretrainedConfig):  # type: ignore[misc]  # transformers is not type-checked here
    """Makes a full model's compact checkpoint known to ``AutoConfig``; ``load_vlm`` reads what is in it."""

    model_type = checkpoint.VLM_MODEL_TYPE


class TowerOfVLM(CompactEncoder):
    """What ``AutoModel`` opens in a full model's compact checkpoint: its tower, of the architecture's own class."""

    config_class = CompactVLMConfig

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> CompactEncoder:
        """As ``CompactEncoder.from_pretrained``."""
        return CompactEncoder.from_pretrained(pretrained_model_name_or_path, **kwargs)


def rest_of_vlm(vlm: PreTrainedModel) -> dict[str, Tensor]:
    """Every tensor of a full model outside its tower, tied ones once: ``save_vlm``'s ``rest_state``."""
    outside = f"{_tower_name(vlm)}."
    tied = vlm.all_tied_weights_keys
    state = vlm.state_dict()
    return {name: tensor for name, tensor in state.items() if not name.startswith(outside) and name not in tied}


def rest_of_checkpoint(model_dir: Path, adapter: TowerAdapter) -> Iterator[tuple[str, Tensor]]:
    """The same from a dense checkpoint's files: one tensor in memory at a time, under the files' own names.

    A tensor with NaN or infinite values raises an InfopruneError when its turn comes.
    """
    places = _outside_tower(Path(model_dir), adapter)
    return _finite(model_dir, iter_tensors(Path(model_dir), places))


def rest_bytes(model_dir: Path, adapter: TowerAdapter) -> int:
    """How much disk ``rest_of_checkpoint`` will take."""
    places = _outside_tower(Path(model_dir), adapter)
    return sum(place.nbytes for place in headers(Path(model_dir), places).values())


def _outside_tower(model_dir: Path, adapter: TowerAdapter) -> dict[str, str]:
    places = weight_map(model_dir, stem="model")
    return {name: file for name, file in places.items() if not name.startswith(adapter.checkpoint_prefixes)}


def _finite(source: Path, tensors: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    for name, tensor in tensors:
        refuse_nan(source, name, tensor)
        yield name, tensor


def refuse_nan(source: Path, name: str, tensor: Tensor) -> None:
    """Raise InfopruneError if a weight read from ``source`` holds NaN or infinity."""
    if tensor.is_floating_point() and tensor.itemsize > 1 and not bool(tensor.isfinite().all()):
        raise InfopruneError(f"{source}: tensor {name!r} holds NaN or infinite values; get an intact checkpoint")


def _tower_name(vlm: PreTrainedModel) -> str:
    """Where in the full model the tower sits, e.g. ``model.visual``."""
    tower = adapter_for(vlm.config).tower_of(vlm)
    names: dict[nn.Module, str] = {module: name for name, module in vlm.named_modules()}
    return names[tower]


def _around_tower(
    config: PretrainedConfig, rest: dict[str, Tensor], dtype: torch.dtype | None, directory: Path
) -> PreTrainedModel:
    """The full model with a place-holder for its tower: a dense one without blocks."""
    vlm = _loaded(config, rest, dtype or _main_dtype(rest), directory)
    if dtype is None and len({tensor.dtype for tensor in rest.values()}) > 1:
        _restore_dtypes(vlm, config, rest, directory)
    return vlm


def _loaded(config: PretrainedConfig, rest: dict[str, Tensor], dtype: torch.dtype, directory: Path) -> PreTrainedModel:
    """What transformers' own loading makes of the tensors, all in one dtype; ``config`` is not changed.

    It renames the tensors of older layouts, ties weights and rebuilds the buffers that no file holds.
    """
    config = copy.deepcopy(config)
    adapter = adapter_for(config)
    model_class = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    num_blocks = getattr(adapter.vision_config(config), adapter.depth_field)
    setattr(adapter.vision_config(config), adapter.depth_field, 0)
    vlm, report = model_class.from_pretrained(
        None,
        config=config,
        state_dict=_place_holders(model_class, config) | rest,
        dtype=dtype,
        output_loading_info=True,
    )
    setattr(adapter.vision_config(vlm.config), adapter.depth_field, num_blocks)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if report[problem]:
            raise InfopruneError(
                f"the weights in {directory} do not fit {model_class.__name__}: "
                f"{problem.replace('_', ' ')} {sorted(map(str, report[problem]))[0]}"
            )
    return vlm


def _main_dtype(tensors: dict[str, Tensor]) -> torch.dtype:
    """The floating dtype that takes the most memory."""
    taken: Counter[torch.dtype] = Counter()
    for tensor in tensors.values():
        if tensor.is_floating_point():
            taken[tensor.dtype] += tensor.nbytes
    return max(taken, key=lambda dtype: taken[dtype])


def _restore_dtypes(vlm: PreTrainedModel, config: PretrainedConfig, rest: dict[str, Tensor], directory: Path) -> None:
    """Give every weight that was converted on loading its stored dtype and bits again.

    Files may name tensors otherwise than the model does. Which is which is seen from a second model: it is loaded
    from single numbers, as many times repeated as the tensor has elements, and takes no memory.
    """
    names = list(rest)
    numbers = {name: torch.tensor(float(i)).expand(tensor.shape) for i, (name, tensor) in enumerate(rest.items())}
    numbered = dict(_loaded(config, numbers, torch.float32, directory).named_parameters())
    outside = f"{_tower_name(vlm)}."
    for name, parameter in vlm.named_parameters():
        if not name.startswith(outside) and parameter.numel():
            stored = rest[names[int(numbered[name].flatten()[0])]]
            if stored.dtype != parameter.dtype:
                parameter.data = stored.clone()


def _place_holders(model_class: type[PreTrainedModel], config: PretrainedConfig) -> dict[str, Tensor]:
    """Zeros for the tower's ends, which the compact tower brings itself."""
    with torch.device("meta"):
        skeleton = model_class(config)
    inside = f"{_tower_name(skeleton)}."
    state = skeleton.state_dict()
    return {name: torch.zeros_like(tensor, device="cpu") for name, tensor in state.items() if name.startswith(inside)}


def _save_pretrained(vlm: PreTrainedModel, save_directory: str | Path) -> None:
    """A compact model's ``save_pretrained``: an earlier checkpoint (or an empty directory) is replaced."""
    tower = adapter_for(vlm.config).tower_of(vlm)
    if not isinstance(tower, CompactEncoder) or tower.plan is None:
        raise InfopruneError("the model's tower carries no plan; set the compact tower's .plan before saving the model")
    directory = Path(save_directory)
    came_from = vlm.config.name_or_path
    checkpoint.save_vlm(
        directory,
        vlm.config,
        tower.config,
        tower.state_dict(),
        rest_of_vlm(vlm),
        tower.plan,
        source_dir=Path(came_from) if came_from and Path(came_from).is_dir() else tower.source_dir,
        overwrite=checkpoint.is_replaceable(directory),
    )
