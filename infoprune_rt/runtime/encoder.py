"""The compact tower's common part: the blocks, the backend, loading and saving.

A tower of one architecture (``towers/``) subclasses ``CompactEncoder`` and adds what comes before
and after the blocks.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Any, overload

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _get_current_dispatch_mode
from transformers import PretrainedConfig, PreTrainedModel

from infoprune_rt import checkpoint
from infoprune_rt.errors import InfopruneError
from infoprune_rt.hub import resolve_model_dir
from infoprune_rt.ops import triton_backend
from infoprune_rt.plan import Plan
from infoprune_rt.runtime.backends import checked_backend, demanded_backend, expected_default, settle_default
from infoprune_rt.runtime.blocks import BlockSpec, BlockStack, CompactBlock, apply_linear, block_specs
from infoprune_rt.runtime.cpu_engine import CpuEngine, PackedLinear, dtype_of, release_workspace
from infoprune_rt.runtime.graphs import CapturedGraphs, capture
from infoprune_rt.towers.base import Stream, TowerShape

__all__ = ["BlockSpec", "BlockStack", "CompactBlock", "CompactEncoder"]

# What AutoModel.from_pretrained passes on by itself. The checkpoint's own config governs.
_FROM_AUTO_MODEL = {
    "_from_auto",
    "adapter_kwargs",
    "cache_dir",
    "config",
    "force_download",
    "local_files_only",
    "proxies",
    "revision",
    "subfolder",
    "token",
    "trust_remote_code",
}


class CompactEncoder(PreTrainedModel):  # type: ignore[misc]  # transformers is not type-checked here
    """A vision tower whose blocks keep different numbers of heads and forms of FFN.

    A subclass sets ``config_class``, calls ``super().__init__(config, shape)`` with the *dense*
    tower's sizes, adds its own modules (without buffers: they would not survive loading on the
    meta device) and ends with ``self.post_init()``.
    """

    plan: Plan | None = None  # what the tower was built from; saved with it
    source_dir: Path | None = None  # where its image-processor files are
    rotary = False  # whether the blocks rotate queries and keys

    def __init__(self, config: PretrainedConfig, shape: TowerShape) -> None:
        super().__init__(config)
        self.blocks = BlockStack(block_specs(config.blocks, shape), shape)
        self._demanded = demanded_backend()  # None: the fastest that can be had
        self._classes = frozenset(map(type, self.blocks.modules())) | {nn.Linear}
        self._engine: CpuEngine | None = None
        self._packed: dict[nn.Linear, PackedLinear] = {}
        self._graphs: CapturedGraphs | None = None

    @property
    def backend(self) -> str:
        """What runs the blocks: "csrc" (C++ kernels, where weights are on the CPU), "triton" (kernels, where they are
        on CUDA) or "plain" (PyTorch operators).

        What was demanded, by setting it or by INFOPRUNE_BACKEND; a pass then raises where the kernels cannot be had.
        Else the fastest that can be had, which the first pass settles; until then, what is to be expected. Whatever it
        is, PyTorch's operators serve where gradients are wanted, in other dtypes, under hooks and in compiled passes.
        """
        if self._demanded is not None:
            return self._demanded
        if dtype_of(self.blocks) is not None:
            return expected_default()
        return "triton" if triton_backend.serves(self.device.type, self.dtype) else "plain"

    @backend.setter
    def backend(self, name: str) -> None:
        self._demanded = checked_backend(name)
        self._engine, self._packed, self._graphs = None, {}, None

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: packed weights and graphs belong to this tower and this machine alone."""
        return self.__dict__ | {"_engine": None, "_packed": {}, "_graphs": None}

    def _apply(self, *args: Any, **kwargs: Any) -> CompactEncoder:
        """``to`` and its like: packed copies of weights that were left are let go now, not at the next pass."""
        super()._apply(*args, **kwargs)
        if self._engine is not None and not self._engine.is_current(self.blocks):
            self._engine = None
        self._packed = {layer: packed for layer, packed in self._packed.items() if packed.is_current(layer)}
        if self._graphs is not None and not self._graphs.are_of(self.blocks):
            self._graphs = None
        return self

    @property
    def graphs(self) -> CapturedGraphs | None:
        """What ``capture_graphs`` captured; None before, and once weights have been replaced."""
        graphs = self._graphs
        return graphs if graphs is not None and graphs.are_of(self.blocks) else None

    def capture_graphs(self, token_budgets: Sequence[int] | None = None, *, max_bytes: int = 1 << 30) -> CapturedGraphs:
        """Capture the blocks as CUDA graphs, so that small packs are one launch each; once, before serving.

        A pass then replays the smallest size that holds its pack, where padding costs no more than the launches that
        it saves, and goes kernel by kernel elsewhere. Passes with gradients, hooks or hidden states use no graphs.

        token_budgets: the sizes in patches; None for a ladder up to 4096. max_bytes: device memory for all graphs;
        sizes that do not fit are left out, and told in ``left_out``.

        Raises:
            InfopruneError: the tower is not on a GPU, not in half precision or has int8 weights, its backend is not
                "triton", or no size fits.
        """
        self._graphs = None
        if self.backend != "triton":
            raise InfopruneError(
                f"graphs are captured of the Triton kernels, but the backend is {self.backend!r}; "
                'set tower.backend = "triton" first'
            )
        self._graphs = capture(self.blocks, rotary=self.rotary, token_budgets=token_budgets, max_bytes=max_bytes)
        return self._graphs

    def _init_weights(self, module: nn.Module) -> None:
        """Random weights for a tower built without a checkpoint, as transformers' own towers have."""
        parameters = dict(module.named_parameters(recurse=False))
        if all(parameter.is_floating_point() for parameter in parameters.values()):
            super()._init_weights(module)
        std = getattr(self.config, "initializer_range", 0.02)
        for name, parameter in parameters.items():
            if not parameter.is_floating_point():
                parameter.random_(-127, 128)
            elif name.endswith("_scale"):
                nn.init.constant_(parameter, std * 3**0.5 / 127)  # a uniform distribution's
            elif parameter.ndim > 1:
                nn.init.normal_(parameter, std=std)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    @overload
    def run_blocks(self, x: Tensor, stream: Stream, keep: None = None) -> Tensor: ...

    @overload
    def run_blocks(self, x: Tensor, stream: Stream, keep: Collection[int]) -> tuple[Tensor | None, ...]: ...

    def run_blocks(
        self, x: Tensor, stream: Stream, keep: Collection[int] | None = None
    ) -> Tensor | tuple[Tensor | None, ...]:
        """Run all blocks on x (T x d), which may be overwritten.

        Without ``keep``: the last block's output. With it: the L + 1 hidden states (the input of
        block 0 first, the last block's output always), None where the index is not in ``keep``.
        """
        if torch.compiler.is_compiling():  # which could not trace it: there INFOPRUNE_BACKEND decides
            return self._run_blocks(x, stream, keep)
        triton_backend.mind_device(self._demanded, x.device)
        with triton_backend.demanding(self._demanded):
            return self._run_blocks(x, stream, keep)

    def _run_blocks(
        self, x: Tensor, stream: Stream, keep: Collection[int] | None
    ) -> Tensor | tuple[Tensor | None, ...]:
        if keep is None and (replayed := self._replayed(x, stream)) is not None:
            return replayed
        cu_seqlens = torch.tensor(stream.cu_seqlens, dtype=torch.int64)
        engine = self._engine_for(x)
        if keep is None:
            run = self.blocks if engine is None else engine.run
            out: Tensor = run(x, cu_seqlens, stream.cos, stream.sin)
            return out
        states: list[Tensor | None] = []
        for i, block in enumerate(self.blocks):
            states.append(x if i in keep else None)
            step = block if engine is None else partial(engine.run_block, i)
            x = step(x, cu_seqlens, stream.cos, stream.sin)
        return (*states, x)

    def _replayed(self, x: Tensor, stream: Stream) -> Tensor | None:
        """The blocks' output out of a graph; None where none may or can serve."""
        graphs = self._graphs
        if graphs is None or type(x) is not Tensor or torch.compiler.is_compiling() or is_watched():
            return None
        if torch.is_grad_enabled() and x.requires_grad:
            return None
        # Half a millisecond of questions, asked while the device already computes; a wrong answer is let go.
        out = graphs.replay(x, stream)
        if out is None or not self._may_bypass(self.blocks, x):
            return None
        if graphs.are_of(self.blocks):
            return out
        self._graphs = None
        warnings.warn("the tower's weights were replaced; capture its graphs again", RuntimeWarning, stacklevel=2)
        return None

    def linear(self, layer: nn.Linear, x: Tensor, activation: str = "none") -> Tensor:
        """activation(layer(x)) of a layer before or after the blocks, by what runs these; x: T x in -> T x out."""
        if not self._may_use_kernels(layer, x):
            return apply_linear(layer, x, activation)
        packed = self._packed.get(layer)
        if packed is None or not packed.is_current(layer):
            if not self._kernels_serve(layer, x):
                return apply_linear(layer, x, activation)
            packed = PackedLinear(layer)
            present = set(self.modules())  # what was replaced is let go
            self._packed = {each: kept for each, kept in self._packed.items() if each in present} | {layer: packed}
        return packed.run(layer, x, activation)

    def _engine_for(self, x: Tensor) -> CpuEngine | None:
        """The kernels with this tower's present weights; none where plain PyTorch must serve."""
        if not self._may_use_kernels(self.blocks, x):
            return None
        engine = self._engine  # read once: another thread may replace it meanwhile
        if engine is not None and engine.dtype == x.dtype and engine.is_current(self.blocks):
            return engine
        if not self._kernels_serve(self.blocks, x):
            return None
        engine = self._engine = CpuEngine(self.blocks)
        return engine

    def _may_use_kernels(self, part: nn.Module, x: Tensor) -> bool:
        return self._demanded in (None, "csrc") and self._may_bypass(part, x)

    def _may_bypass(self, part: nn.Module, x: Tensor) -> bool:
        """Whether something else may compute a part's output: not in training (nothing else has a backward), nor in a
        compiler's trace, nor where others run the part or watch it."""
        if torch.compiler.is_compiling() or type(x) is not Tensor:
            return False
        if torch.is_grad_enabled() and (x.requires_grad or any(p.requires_grad for p in part.parameters())):
            self._engine, self._packed = None, {}  # not every optimiser's step would be seen afterwards
            return False
        if is_watched():
            return False
        return all(map(self._is_as_built, part.modules()))

    def _kernels_serve(self, part: nn.Module, x: Tensor) -> bool:
        """Not off the CPU, nor in other dtypes, nor where the kernels cannot be had (and nobody demanded them)."""
        return dtype_of(part) == x.dtype and (self._demanded is not None or settle_default() == "csrc")

    def release_workspace(self) -> None:
        """Free the working memory that the CPU kernels keep between passes; packed weights stay."""
        if self._engine is not None:
            self._engine.release_workspace()
        release_workspace()

    def _is_as_built(self, module: nn.Module) -> bool:
        """Without hooks, not compiled, and neither its class nor its forward replaced (by adapters, by offloading)."""
        return (
            type(module) in self._classes
            and not module._forward_hooks
            and not module._forward_pre_hooks
            and "forward" not in vars(module)
            and module._compiled_call_impl is None
        )

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | Path, *, dtype: torch.dtype | str | None = None, **kwargs: Any
    ) -> CompactEncoder:
        """Load the compact tower of a tower's or a full model's checkpoint (directory or hub id), in eval mode.

        dtype: converts floating-point weights; None or "auto" keeps the stored ones.
        """
        unknown = sorted(kwargs.keys() - _FROM_AUTO_MODEL)
        if unknown:
            raise InfopruneError(f"a compact tower's from_pretrained does not take {unknown[0]!r}")
        directory = resolve_model_dir(pretrained_model_name_or_path)
        parts = checkpoint.load_tower(directory)
        tower = checkpoint.compact_tower(parts.config)
        if not isinstance(tower, cls):
            raise InfopruneError(f"{directory} holds a {type(tower).__name__}, not a {cls.__name__}")
        checkpoint.match_state(tower, parts.state, f"the weights in {directory}")
        tower.load_state_dict(parts.state, assign=True)
        tower.plan, tower.source_dir = parts.plan, directory
        tower.config.name_or_path = str(directory)
        target = _dtype(dtype)
        if target is not None:
            tower.to(target)
        tower.eval()
        return tower

    def save_pretrained(self, save_directory: str | Path) -> None:
        """Write a compact checkpoint; an earlier one (or an empty directory) there is replaced."""
        if self.plan is None:
            raise InfopruneError("this compact tower carries no plan; set its .plan before saving it")
        directory = Path(save_directory)
        state = self.state_dict()
        replace = checkpoint.is_replaceable(directory)
        checkpoint.save_tower(directory, self.config, state, self.plan, self.source_dir, overwrite=replace)


def is_watched() -> bool:
    """Whether hooks on all modules, or a mode that follows every operator (as FLOP counters do), want to see a pass."""
    everywhere = nn.modules.module
    hooks = everywhere._global_forward_hooks or everywhere._global_forward_pre_hooks
    return bool(hooks) or _get_current_dispatch_mode() is not None


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return None
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype):
        raise InfopruneError(f"unknown dtype {dtype!r}; use for example 'bfloat16'")
    return found
