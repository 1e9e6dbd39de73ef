"""What the ablations measure, and how thoroughly."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from infoprune_rt.errors import InfopruneError


@dataclass(frozen=True)
class Options:
    """A run resumes only with the options that it began with.

    seeds: gate seeds 0 .. seeds - 1. removed: fractions of all heads. beta, gamma: weights of L_eRank and L_KS where
    an objective has them. steps: Adam steps that learn zeta; batch_size: questions in each. epsilons: the paper's
    Table 4. ranks: shares of the tower's width d. neurons: shares of the FFN's width m. followed_steps: steps of the
    gradient study; task_every: how many of them share one measurement of the task's gradient where that does not
    drive. linear_shares: fractions of the blocks whose FFNs are linearised. calibration_pictures: the first so many
    of the calibration data fit FFNs and projections, picture_batch at a time (which ones are held out depends on it).
    answer_batch: questions answered at a time. micro_batch, checkpoint_activations: as in ``HeadTrainingSettings``.
    """

    seeds: int = 3
    removed: tuple[float, ...] = (0.25, 0.5, 0.7)
    beta: float = 0.3
    gamma: float = 0.3
    steps: int = 200
    batch_size: int = 32
    epsilons: tuple[float, ...] = (0.001, 0.005, 0.01, 0.02, 0.05)
    ranks: tuple[float, ...] = (1 / 12, 1 / 6, 1 / 3, 1 / 2, 1.0)
    neurons: tuple[float, ...] = (1 / 16, 1 / 8, 1 / 4, 1 / 2)
    followed_steps: int = 200
    task_every: int = 10
    linear_shares: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    calibration_pictures: int = 300
    picture_batch: int = 32
    answer_batch: int = 128
    micro_batch: int | None = None
    checkpoint_activations: bool = False

    def __post_init__(self) -> None:
        counts = (
            "seeds",
            "steps",
            "batch_size",
            "followed_steps",
            "calibration_pictures",
            "picture_batch",
            "answer_batch",
        )
        for name in counts:
            if getattr(self, name) < 1:
                raise InfopruneError(f"ablations: {name} must be at least 1, not {getattr(self, name)}")

    def quick(self) -> Options:
        """A look at everything: one seed, fewer points and steps."""
        return replace(
            self,
            seeds=1,
            removed=self.removed[1:],
            steps=20,
            epsilons=self.epsilons[::4],
            ranks=self.ranks[1:4:2],
            neurons=self.neurons[1:3],
            followed_steps=20,
            linear_shares=self.linear_shares[1::2],
            calibration_pictures=64,
        )

    def identity(self) -> dict[str, Any]:
        """What a row depends on: everything but how memory is saved."""
        spared = ("answer_batch", "micro_batch", "checkpoint_activations")
        return {name: value for name, value in asdict(self).items() if name not in spared}
