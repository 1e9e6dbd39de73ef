"""Scores of all heads of a tower as a file, and the methods that need no training."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from infoprune_rt.errors import InfopruneError
from infoprune_rt.files import write_text
from infoprune_rt.pruning.activation_checkpoints import checkpointed_layers
from infoprune_rt.pruning.gate_gradient import collate_parts, gate_gradient
from infoprune_rt.pruning.head_gates import TowerHeads
from infoprune_rt.pruning.task_loss import TrainingBatches, batch_indices, frozen
from infoprune_rt.towers.base import TowerAdapter, TowerShape

SCORES_FORMAT = 1
ScoreMethod = Literal["zeta", "random", "magnitude", "michel"]
SCORE_METHODS: tuple[str, ...] = ("zeta", "random", "magnitude", "michel")


@dataclass(frozen=True)
class HeadScores:
    """How much every head is worth: ``scores`` has a row per block and a number per head; higher is kept longer."""

    method: ScoreMethod
    architecture: str
    scores: tuple[tuple[float, ...], ...]
    settings: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.method not in SCORE_METHODS:
            raise InfopruneError(f"unknown score method {self.method!r}; known are {', '.join(SCORE_METHODS)}")
        if not self.scores or len({len(row) for row in self.scores}) != 1 or not self.scores[0]:
            raise InfopruneError('"scores" must have one row per block, all with the same number of heads')
        for i, row in enumerate(self.scores):
            for h, value in enumerate(row):
                if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                    raise InfopruneError(f"block {i}, head {h}: the score must be a finite number, not {value!r}")

    @classmethod
    def of(cls, method: ScoreMethod, architecture: str, scores: Tensor, **info: dict[str, Any]) -> HeadScores:
        """From a tensor [L, H]; ``info`` may hold ``settings`` and ``provenance``."""
        rows = tuple(tuple(row) for row in scores.detach().double().cpu().tolist())
        return cls(method, architecture, rows, **info)

    def tensor(self) -> Tensor:
        """Scores [L, H], float64."""
        return torch.tensor(self.scores, dtype=torch.float64)

    def check_tower(self, architecture: str, shape: TowerShape) -> None:
        """Raise InfopruneError unless these are scores of a tower of this architecture and these sizes."""
        theirs = (self.architecture, len(self.scores), len(self.scores[0]))
        ours = (architecture, shape.num_blocks, shape.num_heads)
        if theirs != ours:
            (a, m, n), (b, i, j) = theirs, ours
            raise InfopruneError(
                f"the scores are of a {a!r} tower of {m} blocks with {n} heads, but this one is {b!r}, {i} blocks "
                f"with {j} heads; score this model's heads"
            )

    def write(self, path: Path) -> None:
        """Write as JSON, aside and then renamed."""
        write_text(path, json.dumps(self.to_dict(), indent=1) + "\n")

    def to_dict(self) -> dict[str, Any]:
        """As the file holds it."""
        return {"format": SCORES_FORMAT, **asdict(self)}

    @classmethod
    def read(cls, path: Path) -> HeadScores:
        """Read and validate; a mistake is told with the file's name."""
        try:
            data = json.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise InfopruneError(f"{path} is not a readable file of head scores: {error}") from error
        if not isinstance(data, dict) or data.pop("format", None) != SCORES_FORMAT:
            raise InfopruneError(f'{path}: not head scores of format {SCORES_FORMAT} (see its "format" field)')
        rows = data.get("scores")
        if not isinstance(rows, list) or not all(isinstance(row, list) for row in rows):
            raise InfopruneError(f'{path}: "scores" must be a list of lists, one per block')
        data["scores"] = tuple(tuple(row) for row in rows)
        wrong = {"method", "architecture", "scores"} - data.keys() or data.keys() - {f.name for f in fields(cls)}
        if wrong:
            raise InfopruneError(f"{path}: the field {min(wrong)!r} is missing or unknown")
        try:
            return cls(**data)
        except InfopruneError as error:
            raise InfopruneError(f"{path}: {error}") from error


def random_scores(model: nn.Module, adapter: TowerAdapter, *, seed: int) -> HeadScores:
    """The control that knows nothing: uniform on (0, 1)."""
    heads = TowerHeads.of(model, adapter)
    scores = torch.rand(
        len(heads.blocks), heads.num_heads, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )
    return HeadScores.of("random", adapter.architecture, scores, settings={"seed": seed})


def magnitude_scores(model: nn.Module, adapter: TowerAdapter) -> HeadScores:
    """Frobenius norm of each head's weights: its q, k, v rows and its columns of the output projection."""
    heads = TowerHeads.of(model, adapter)
    rows = []
    for block in heads.blocks:
        weight, _ = adapter.qkv(block)
        projected = weight.detach().double().view(3, heads.num_heads, heads.head_dim, -1)
        out = block.out_proj.weight.detach().double().view(-1, heads.num_heads, heads.head_dim)
        rows.append((projected.square().sum((0, 2, 3)) + out.square().sum((0, 2))).sqrt().cpu())
    return HeadScores.of("magnitude", adapter.architecture, torch.stack(rows))


def michel_scores(
    model: nn.Module,
    adapter: TowerAdapter,
    batches: TrainingBatches,
    *,
    steps: int,
    batch_size: int,
    seed: int,
    micro_batch: int | None = None,
    checkpoint_activations: bool = False,
) -> HeadScores:
    """|d task loss / d gate| at open gates, summed over ``steps`` batches, each block scaled to L2 norm 1.

    Michel, Levy & Neubig 2019. A block whose heads all have zero gradient scores zero. The last two arguments save
    memory, as in ``HeadTrainingSettings``.
    """
    heads = TowerHeads.of(model, adapter)
    device = next(model.parameters()).device
    total = torch.zeros(len(heads.blocks), heads.num_heads, dtype=torch.float64)
    with frozen(model), checkpointed_layers(model, checkpoint_activations):
        for step in range(steps):
            items = batch_indices(len(batches), step * batch_size, batch_size, seed)
            parts = collate_parts(batches, items, micro_batch)
            _, gradient = gate_gradient(model, heads, torch.ones(total.shape, device=device), parts)
            if not gradient.isfinite().all():
                raise InfopruneError(f"step {step}: the gate gradient is not finite on dataset items {items}")
            total += gradient.abs().double().cpu()
    norm = total.norm(dim=1, keepdim=True)
    scores = total / torch.where(norm > 0, norm, 1.0)
    settings = {"steps": steps, "batch_size": batch_size, "seed": seed}
    return HeadScores.of("michel", adapter.architecture, scores, settings=settings)
