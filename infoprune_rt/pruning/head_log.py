"""The log of a head training run (JSON lines) and its picture."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from infoprune_rt.files import write_file

TERMS = ("task", "erank", "ks", "budget")


class HeadLog:
    """``log.jsonl``: one line per epoch with the means over its steps.

    The running sums of the epoch under way are part of the checkpoint (``numbers``), so that a resumed run writes
    the very lines that an uninterrupted one would.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.epoch = 0
        self._sums: dict[str, float] = {}
        self._count = 0

    def add(self, losses: dict[str, float], gradient_norms: dict[str, float]) -> None:
        """Take in one step."""
        for prefix, values in (("loss", losses), ("gradient", gradient_norms)):
            for term, value in values.items():
                key = f"{prefix}_{term}"
                self._sums[key] = self._sums.get(key, 0.0) + value
        self._count += 1

    def end_epoch(self, step: int, zeta: Tensor) -> None:
        """Append the epoch's line, on disk when this returns; ``step`` steps have been taken in all."""
        if not self._count:
            return
        means = {key: value / self._count for key, value in self._sums.items()}
        line = {
            "epoch": self.epoch,
            "step": step,
            **means,
            "mean_zeta": zeta.mean().item(),
            "min_zeta": zeta.min().item(),
        }
        with self.path.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.epoch, self._sums, self._count = self.epoch + 1, {}, 0

    def numbers(self) -> dict[str, Any]:
        """State for the checkpoint."""
        size = self.path.stat().st_size if self.path.exists() else 0
        return {"log_bytes": size, "epoch": self.epoch, "sums": self._sums, "count": self._count}

    def resume(self, numbers: dict[str, Any] | None) -> None:
        """Go back to the checkpoint: cut off what was logged after it (everything, if there is none)."""
        if numbers is not None:
            self.epoch, self._sums, self._count = numbers["epoch"], dict(numbers["sums"]), numbers["count"]
        if self.path.exists():
            os.truncate(self.path, min(numbers["log_bytes"] if numbers else 0, self.path.stat().st_size))

    def lines(self) -> list[dict[str, Any]]:
        """All epochs so far."""
        return [json.loads(line) for line in self.path.read_text().splitlines()]


def plot(path: Path, zeta: Tensor, lines: list[dict[str, Any]]) -> None:
    """A PNG: zeta of every head, the losses over the steps, and the gradient norm of every term."""
    figure = Figure(figsize=(13, 4), layout="constrained")
    FigureCanvasAgg(figure)
    heat, losses, gradients = figure.subplots(1, 3)
    image = heat.imshow(np.asarray(zeta.cpu()), vmin=0, vmax=1, aspect="auto", cmap="viridis")
    heat.set(xlabel="head", ylabel="block", title="ζ after training")
    figure.colorbar(image, ax=heat)
    steps = [line["step"] for line in lines]
    for term in TERMS:
        if lines and f"loss_{term}" in lines[0]:
            losses.plot(steps, [line[f"loss_{term}"] for line in lines], label=term)
            gradients.plot(steps, [line[f"gradient_{term}"] for line in lines], label=term)
    losses.plot(steps, [line["mean_zeta"] for line in lines], "k:", label="mean ζ")
    losses.set(xlabel="step", title="losses")
    gradients.set(xlabel="step", yscale="log", title="gradient norm with respect to the logits")
    losses.legend()
    gradients.legend()
    write_file(path, lambda aside: figure.savefig(aside, format="png", dpi=120))
