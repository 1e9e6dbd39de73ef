"""One streaming pass over calibration images: the moments that a plan's fits ask for.

Every fourth batch (the second, the sixth, ...) is held out to judge the fits by; a lone batch is
split by images, a lone image by rows. Memory does not depend on the number of images.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, cast

import torch
from torch import Tensor, nn

from infoprune_rt.errors import InfopruneError
from infoprune_rt.pruning.ffn_forms import FFNFit
from infoprune_rt.pruning.moments import Twin
from infoprune_rt.pruning.task_loss import to_device
from infoprune_rt.towers.base import SourceBlock, Stream, TowerAdapter, TowerShape

_HELD_EVERY = 4
_HELD_FIRST = 1  # so that two batches already give one of each kind

if TYPE_CHECKING:
    from transformers import PretrainedConfig

Role = Literal["fit", "held", "split"]
Regressor = Literal["input", "hidden", "both"] | FFNFit


@dataclass(frozen=True)
class Wants:
    """The moments one block's fits ask for.

    ffn: what the FFN's output is regressed on, its input x (d), its hidden values h (m), both (m + d, h
    first), or the hidden values of a fit in its place (k); None for nothing. means_only: the fit needs
    no second moments (they are as wide as that in both directions). heads: the kept heads whose output
    projection is refitted; None for no refit.
    """

    ffn: Regressor | None = None
    means_only: bool = False
    heads: tuple[int, ...] | None = None

    @property
    def anything(self) -> bool:
        """Whether any data are needed at all."""
        return self.ffn is not None or self.heads is not None

    def ffn_columns(self, shape: TowerShape) -> int:
        """Columns of the FFN's regressor."""
        if isinstance(self.ffn, FFNFit):
            return len(self.ffn.tensors["fc1_weight"])
        both = shape.ffn_width + shape.width
        return {None: 0, "input": shape.width, "hidden": shape.ffn_width, "both": both}[self.ffn]

    def ffn_rows(self, x: Tensor, hidden: Tensor, activation: str) -> Tensor:
        """The FFN's regressor on rows of its input x (T x d) and its hidden values (T x m)."""
        if isinstance(self.ffn, FFNFit):
            return self.ffn.hidden(x, activation)
        if self.ffn == "both":
            return torch.cat((hidden, x), 1)
        return x if self.ffn == "input" else hidden

    def head_columns(self, shape: TowerShape) -> int:
        """Columns of the kept heads' outputs."""
        return len(self.heads or ()) * shape.head_dim


@dataclass(frozen=True)
class BlockMoments:
    """ffn: x or h -> the FFN's output; heads: kept columns of Z -> the attention's output."""

    ffn: Twin | None = None
    heads: Twin | None = None

    @classmethod
    def empty(cls, wants: Wants, shape: TowerShape, device: torch.device) -> BlockMoments:
        """Nothing counted yet."""
        ffn = heads = None
        if wants.ffn is not None:
            columns = wants.ffn_columns(shape)
            ffn = Twin.empty(columns, shape.width, means_only=wants.means_only, device=device)
        if wants.heads is not None:
            heads = Twin.empty(wants.head_columns(shape), shape.width, device=device)
        return cls(ffn, heads)

    @staticmethod
    def nbytes(wants: Wants, shape: TowerShape) -> int:
        """What one block's moments take."""
        total = 0
        if wants.ffn is not None:
            total += Twin.nbytes(wants.ffn_columns(shape), shape.width, means_only=wants.means_only)
        if wants.heads is not None:
            total += Twin.nbytes(wants.head_columns(shape), shape.width)
        return total


@dataclass
class Seen:
    """What passed through one block on one batch, rows packed: every tensor is T x something."""

    z: Tensor = field(init=False)  # concatenated head outputs, T x (H * head_dim)
    attended: Tensor = field(init=False)  # the attention's output, T x d
    middle: Tensor = field(init=False)  # the residual stream between attention and FFN, T x d
    ffn_input: Tensor = field(init=False)  # T x d
    hidden: Tensor = field(init=False)  # T x m
    ffn_output: Tensor = field(init=False)  # T x d


class _SeenEnoughError(Exception):
    """Ends a block's forward once what is needed has been seen."""


@contextmanager
def watch(block: SourceBlock) -> Iterator[Seen]:
    """Hooks on an unmodified block for the length of the context."""
    seen = Seen()

    def before(name: str) -> Any:
        return lambda _module, args: setattr(seen, name, _rows(args[0]))

    def after(name: str) -> Any:
        return lambda _module, _args, output: setattr(seen, name, _rows(output))

    handles = [
        block.out_proj.register_forward_pre_hook(before("z")),
        block.out_proj.register_forward_hook(after("attended")),
        block.norm2.register_forward_pre_hook(before("middle")),
        block.ffn.register_forward_pre_hook(before("ffn_input")),
        block.fc2.register_forward_pre_hook(before("hidden")),
        block.ffn.register_forward_hook(after("ffn_output")),
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def head_outputs(adapter: TowerAdapter, block: SourceBlock, x: Tensor, stream: Stream) -> Tensor:
    """Z (T x H * head_dim) of a block on the stream x; the rest of the block is not computed."""

    def stop(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        raise _SeenEnoughError(_rows(args[0]))

    handle = block.out_proj.register_forward_pre_hook(stop)
    try:
        adapter.run_block(block, x, stream)
    except _SeenEnoughError as enough:
        z: Tensor = enough.args[0]
        return z
    finally:
        handle.remove()
    raise RuntimeError("a block ran without calling its output projection")


def calibrate(
    tower: nn.Module, adapter: TowerAdapter, batches: Iterable[Mapping[str, Tensor]], wants: Sequence[Wants]
) -> list[BlockMoments]:
    """Moments of the dense tower's blocks, one entry per block, from one pass over ``batches``.

    ``batches`` are tower inputs (``adapter.tower_inputs``). Raises InfopruneError for no batches and
    for NaN or infinite activations, naming the block and the batch.
    """
    blocks, shape = adapter.blocks(tower), shape_of(tower, adapter)
    moments: list[BlockMoments] = []
    last = max((i for i, want in enumerate(wants) if want.anything), default=-1)
    with torch.no_grad():
        for index, x, stream, cut in embedded(tower, adapter, batches):
            moments = moments or [BlockMoments.empty(want, shape, x.device) for want in wants]
            for i, block in enumerate(blocks[: last + 1]):
                with watch(block) as seen:
                    x = adapter.run_block(block, x, stream)
                _count(moments[i], wants[i], shape, seen, cut, f"block {i}, calibration batch {index}")
    return moments


def embedded(
    tower: nn.Module, adapter: TowerAdapter, batches: Iterable[Mapping[str, Tensor]]
) -> Iterator[tuple[int, Tensor, Stream, int]]:
    """Each batch's number, the stream before block 0 (on the tower's device), and the first row that is held out."""
    device = next(tower.parameters()).device
    index = -1
    for index, (batch, role) in enumerate(_roles(batches)):
        x, stream = adapter.embed(tower, to_device(batch, device))
        check_finite(x, f"the patch embedding, calibration batch {index}")
        yield index, x, stream, _first_held_row(role, stream.cu_seqlens)
    if index < 0:
        raise InfopruneError("calibration needs at least one batch of images, but got none")


def shape_of(tower: nn.Module, adapter: TowerAdapter) -> TowerShape:
    """The sizes of an unmodified tower, from the config it carries."""
    return adapter.shape(cast("PretrainedConfig", tower.config))


def check_finite(values: Tensor, where: str) -> None:
    """Refuse NaN and infinity by name."""
    if not bool(values.isfinite().all()):
        raise InfopruneError(f"{where}: an activation is NaN or infinite; check the tower's weights and this batch")


def head_columns(heads: Sequence[int], head_dim: int, device: torch.device | None = None) -> Tensor:
    """Columns of Z that belong to ``heads``."""
    first = torch.tensor(heads, dtype=torch.long, device=device)[:, None] * head_dim
    return (first + torch.arange(head_dim, device=device)).flatten()


def _count(moments: BlockMoments, wants: Wants, shape: TowerShape, seen: Seen, cut: int, where: str) -> None:
    if moments.heads is not None:
        check_finite(seen.attended, f"{where}, attention output")
        z = seen.z[:, head_columns(wants.heads or (), shape.head_dim, seen.z.device)]
        moments.heads.add(z, seen.attended, cut)
    if moments.ffn is not None:
        check_finite(seen.ffn_output, f"{where}, FFN output")
        moments.ffn.add(wants.ffn_rows(seen.ffn_input, seen.hidden, shape.activation), seen.ffn_output, cut)


def _roles(batches: Iterable[Mapping[str, Tensor]]) -> Iterator[tuple[Mapping[str, Tensor], Role]]:
    source = iter(batches)
    first = next(source, None)
    if first is None:
        return
    second = next(source, None)
    if second is None:
        yield first, "split"
        return
    yield first, "fit"
    yield second, "held"
    for index, batch in enumerate(source, start=2):
        yield batch, "held" if index % _HELD_EVERY == _HELD_FIRST else "fit"


def _first_held_row(role: Role, cu_seqlens: tuple[int, ...]) -> int:
    images, rows = len(cu_seqlens) - 1, cu_seqlens[-1]
    if role == "fit":
        return rows
    if role == "held":
        return 0
    if images > 1:
        return cu_seqlens[images - max(1, images // _HELD_EVERY)]
    if rows < 2:
        raise InfopruneError("calibration needs more than one token; give a larger image or more images")
    return rows - max(1, rows // _HELD_EVERY)


def _rows(x: Tensor) -> Tensor:
    return x.flatten(0, -2)
