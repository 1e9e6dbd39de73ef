"""Learning zeta: only the gates train, the model stays frozen and unwrapped (method.md section 1).

L = L_task + beta * L_eRank + gamma * L_KS + mu * mean zeta. The information terms come from the dense stream's Gram
matrices, measured once; a step needs images for the task loss only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import transformers
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from rich.progress import Progress
from torch import Tensor, nn

from infoprune_rt.errors import InfopruneError
from infoprune_rt.files import make_directory
from infoprune_rt.progress import progress_bars
from infoprune_rt.pruning import head_checkpoint
from infoprune_rt.pruning.activation_checkpoints import checkpointed_layers
from infoprune_rt.pruning.gate_gradient import collate_parts, gate_gradient
from infoprune_rt.pruning.head_gates import GATE_KINDS, GateKind, HeadGates, TowerHeads
from infoprune_rt.pruning.head_gram import gram_device, stream_gram
from infoprune_rt.pruning.head_log import HeadLog, plot
from infoprune_rt.pruning.head_scores import HeadScores
from infoprune_rt.pruning.information import (
    erank_change,
    gated_gram,
    ks_empirical,
    ks_spectral,
    singular_values_from_gram,
)
from infoprune_rt.pruning.task_loss import TrainingBatches, batch_indices, frozen
from infoprune_rt.towers.base import TowerAdapter

CHECKPOINT, GRAM, LOG, SCORES, PICTURE = (
    "checkpoint.safetensors",
    "gram.safetensors",
    "log.jsonl",
    "head-scores.json",
    "zeta.png",
)
_MEMORY_SETTINGS = ("micro_batch", "checkpoint_activations")  # how a step is computed, not what it is
_GRAM_STREAM, _NOISE_STREAM = 1, 2  # random streams apart from the data order's


@dataclass(frozen=True)
class HeadTrainingSettings:
    """steps: optimiser steps. batch_size: items per process and step. beta, gamma, mu: weights of L_eRank, L_KS and
    the budget term. ks: which reading of the KS distance; tau: width of the empirical one, in dense mean singular
    values. gram_images: dataset items whose images give the Gram matrices. epoch_steps: steps in one line of the log;
    None: a pass over the data, but at most a twentieth of the run.

    micro_batch: items differentiated at a time; None: all of a step's. checkpoint_activations: layers compute their
    activations again in backward instead of keeping them. Both save memory and change a step by rounding alone, so
    that a run which ran out of memory may resume with others."""

    steps: int = 200
    batch_size: int = 32
    lr: float = 0.05
    init_logit: float = 3.0
    beta: float = 0.3
    gamma: float = 0.3
    mu: float = 0.0
    ks: Literal["spectral", "empirical"] = "spectral"
    tau: float = 0.1
    gate: GateKind = "sigmoid"
    seed: int = 0
    gram_images: int = 256
    checkpoint_every: int = 20
    epoch_steps: int | None = None
    micro_batch: int | None = None
    checkpoint_activations: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "gram_images", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise InfopruneError(f"head training: {name} must be at least 1, not {getattr(self, name)}")
        for name in ("beta", "gamma", "mu"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise InfopruneError(f"head training: {name} must be a finite weight >= 0, not {getattr(self, name)}")
        for name in ("lr", "tau"):
            if not 0 < getattr(self, name) < float("inf"):
                raise InfopruneError(f"head training: {name} must be positive, not {getattr(self, name)}")
        if not math.isfinite(self.init_logit):
            raise InfopruneError(f"head training: init_logit must be a finite number, not {self.init_logit}")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise InfopruneError(f"head training: micro_batch must be at least 1, not {self.micro_batch}")
        if self.seed < 0 or (self.epoch_steps is not None and self.epoch_steps < 1):
            raise InfopruneError("head training: seed must be at least 0 and epoch_steps at least 1")
        if self.ks not in ("spectral", "empirical"):
            raise InfopruneError(f"head training: ks must be 'spectral' or 'empirical', not {self.ks!r}")
        if self.gate not in GATE_KINDS:
            raise InfopruneError(f"head training: gate must be one of {', '.join(GATE_KINDS)}, not {self.gate!r}")

    @property
    def needs_gram(self) -> bool:
        """Whether an information term is wanted at all."""
        return self.beta > 0 or self.gamma > 0


def train_heads(
    model: nn.Module,
    adapter: TowerAdapter,
    batches: TrainingBatches,
    settings: HeadTrainingSettings,
    out_dir: Path,
    accelerator: Accelerator | None = None,
) -> HeadScores:
    """Train one gate per head of the model's tower and return zeta as scores.

    Runs in as many processes as accelerate's launcher starts; gate gradients are averaged over them. ``out_dir``
    receives ``head-scores.json``, ``zeta.png``, ``log.jsonl`` and the checkpoints; called again after an interruption
    it resumes there and ends with the same zeta, bit for bit on the same machine. The model is unchanged afterwards.
    """
    accelerator = accelerator or Accelerator()
    if not len(batches):
        raise InfopruneError("the data set has no items; give it at least one question")
    home = next(model.parameters()).device
    placed = getattr(model, "hf_device_map", None) is not None
    if not placed:
        model.to(accelerator.device)
    try:
        with frozen(model), checkpointed_layers(model, settings.checkpoint_activations):
            trainer = _Trainer(model, adapter, batches, settings, Path(out_dir), accelerator)
            trainer.prepare()
            trainer.train()
    finally:
        if not placed:
            model.to(home)
    return trainer.finish()


class _Trainer:
    def __init__(
        self,
        model: nn.Module,
        adapter: TowerAdapter,
        batches: TrainingBatches,
        settings: HeadTrainingSettings,
        out_dir: Path,
        accelerator: Accelerator,
    ) -> None:
        self.model, self.adapter, self.batches = model, adapter, batches
        self.settings, self.out_dir, self.accelerator = settings, out_dir, accelerator
        self.rank, self.world = accelerator.process_index, accelerator.num_processes
        self.heads = TowerHeads.of(model, adapter)
        size = (len(self.heads.blocks), self.heads.num_heads)
        self.gates = HeadGates(*size, init_logit=settings.init_logit, kind=settings.gate)
        self.gates.to(accelerator.device)
        self.optimizer = torch.optim.Adam([self.gates.logits], lr=settings.lr)
        self.log = HeadLog(out_dir / LOG)
        self.step = 0
        # Each process differentiates the information terms of its own blocks only.
        self.own = slice(self.rank, None, self.world)
        self.identity = {
            **{name: value for name, value in asdict(settings).items() if name not in _MEMORY_SETTINGS},
            "architecture": adapter.architecture,
            "fingerprint": head_checkpoint.fingerprint(self.heads.blocks),
            "items": len(batches),
            "data": batches.digest,
            "processes": self.world,
        }

    # -- preparing and resuming

    def prepare(self) -> None:
        """Load the last checkpoint, if any, and the Gram matrices (measured now if they never were)."""
        if self.accelerator.is_main_process:
            make_directory(self.out_dir)
            head_checkpoint.remove_torn(self.out_dir, CHECKPOINT, GRAM, SCORES, PICTURE)
        loaded = self._from_main(CHECKPOINT)
        if loaded is not None:
            tensors, numbers = loaded
            self._restore(tensors, numbers["step"])
        if self.accelerator.is_main_process:
            self.log.resume(loaded[1]["log"] if loaded is not None else None)
        if self.settings.needs_gram:
            self.gram = self._dense_gram()[self.own].clone()
            self.dense = singular_values_from_gram(self.gram)

    def _from_main(self, name: str) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """A checkpoint as the main process reads it; other machines need not see its disk."""
        found = [head_checkpoint.load(self.out_dir / name, self.identity) if self.accelerator.is_main_process else None]
        loaded: tuple[dict[str, Tensor], dict[str, Any]] | None = broadcast_object_list(found)[0]
        return loaded

    def _restore(self, tensors: dict[str, Tensor], step: int) -> None:
        self.step = step
        with torch.no_grad():
            self.gates.logits.copy_(tensors.pop("logits"))
        state = self.optimizer.state_dict()
        state["state"] = {0: {"step": torch.tensor(float(step)), **tensors}}
        self.optimizer.load_state_dict(state)

    def _dense_gram(self) -> Tensor:
        """[L, n, n] float64, over all processes' share of the calibration items."""
        saved = self._from_main(GRAM)
        if saved is not None:
            return saved[0]["gram"].to(gram_device(self.accelerator.device))
        s = self.settings
        count = min(s.gram_images, len(self.batches))
        order = np.random.default_rng([s.seed, _GRAM_STREAM, 0]).permutation(len(self.batches))[:count]
        share = order[self.rank :: self.world].tolist()
        chunks = [share[i : i + s.batch_size] for i in range(0, len(share), s.batch_size)]
        with self._progress() as progress:
            share_gram = stream_gram(
                self.model, self.adapter, self.batches, progress.track(chunks, description="dense Gram")
            )
        gram: Tensor = self.accelerator.reduce(share_gram, reduction="sum")
        if self.accelerator.is_main_process:
            head_checkpoint.save(self.out_dir / GRAM, self.identity, {"gram": gram}, {})
        return gram

    def _checkpoint(self) -> None:
        if not self.accelerator.is_main_process:
            return
        state = self.optimizer.state[self.gates.logits]
        tensors = {"logits": self.gates.logits, "exp_avg": state["exp_avg"], "exp_avg_sq": state["exp_avg_sq"]}
        numbers = {"step": self.step, "log": self.log.numbers()}
        head_checkpoint.save(self.out_dir / CHECKPOINT, self.identity, tensors, numbers)

    # -- training

    def train(self) -> None:
        """All remaining steps."""
        s = self.settings
        epoch_steps = s.epoch_steps or max(1, min(len(self.batches) // (s.batch_size * self.world), s.steps // 20))
        with self._progress() as progress:
            bar = progress.add_task("learning ζ", total=s.steps, completed=self.step)
            for items, parts in self._batches():
                losses, norms = self._step(items, parts)
                self.step += 1
                last = self.step == s.steps
                if self.accelerator.is_main_process:
                    self.log.add(losses, norms)
                    if last or self.step % epoch_steps == 0:
                        self.log.end_epoch(self.step, self.gates.zeta().detach())
                if last or self.step % s.checkpoint_every == 0:
                    self._checkpoint()
                progress.update(bar, advance=1, description=f"learning ζ · task loss {losses['task']:.4f}")

    def _batches(self) -> Iterator[tuple[list[int], list[dict[str, Tensor]]]]:
        """This process's items and their features from the current step on; the next batch is made meanwhile."""
        s = self.settings

        def items(step: int) -> list[int]:
            start = (step * self.world + self.rank) * s.batch_size
            return batch_indices(len(self.batches), start, s.batch_size, s.seed)

        def parts(step: int) -> list[dict[str, Tensor]]:
            return collate_parts(self.batches, items(step), s.micro_batch)

        with ThreadPoolExecutor(max_workers=1) as pool:
            steps = range(self.step, s.steps)
            coming = [pool.submit(parts, step) for step in steps[:1]]
            for step in steps:
                ready = coming.pop().result()
                if step + 1 < s.steps:
                    coming.append(pool.submit(parts, step + 1))
                yield items(step), ready

    def _step(self, items: list[int], parts: list[dict[str, Tensor]]) -> tuple[dict[str, float], dict[str, float]]:
        """One Adam step; returns each term's loss and gradient norm (unweighted)."""
        s = self.settings
        logits = self.gates.logits
        zeta = self.gates.zeta(self._noise())
        value, slope = gate_gradient(self.model, self.heads, zeta, parts, self.accelerator.autocast)
        values, slopes = [value], [torch.autograd.grad(zeta, logits, slope, retain_graph=True)[0]]
        terms = self._terms(zeta)
        for term in terms.values():
            values.append(term.detach().to(value))
            slopes.append(torch.autograd.grad(term, logits, retain_graph=True)[0])
        names = ["task", *terms]
        weights = {"task": 1.0, "erank": s.beta, "ks": s.gamma, "budget": s.mu}
        mean_values, mean_slopes = self._averaged(torch.stack(values), torch.stack(slopes))
        self._check_finite(names, mean_values, mean_slopes, items)
        weighted = [weights[name] * slope for name, slope in zip(names, mean_slopes, strict=True)]
        logits.grad = torch.stack(weighted).sum(0)
        self.optimizer.step()
        norms = mean_slopes.flatten(1).norm(dim=1)
        return dict(zip(names, mean_values.tolist(), strict=True)), dict(zip(names, norms.tolist(), strict=True))

    def _terms(self, zeta: Tensor) -> dict[str, Tensor]:
        """The wanted terms besides the task; the mean over processes of each is the term of the whole tower."""
        s = self.settings
        terms = {}
        if s.needs_gram:
            gated = singular_values_from_gram(gated_gram(self.gram, zeta[self.own], self.heads.head_dim))
            share = self.world / len(zeta)
            if s.beta > 0:
                terms["erank"] = share * erank_change(self.dense, gated).sum()
            if s.gamma > 0:
                spectral = s.ks == "spectral"
                ks = ks_spectral(self.dense, gated) if spectral else ks_empirical(self.dense, gated, s.tau)
                terms["ks"] = share * ks.sum()
        if s.mu > 0:
            terms["budget"] = self.gates.cost()
        return terms

    def _noise(self) -> Tensor | None:
        """Uniform [L, H] of this step, the same in every process; none for deterministic gates."""
        if self.settings.gate == "sigmoid":
            return None
        generator = np.random.default_rng([self.settings.seed, _NOISE_STREAM, self.step])
        return torch.from_numpy(generator.random(self.gates.logits.shape)).to(self.gates.logits)

    def _averaged(self, values: Tensor, slopes: Tensor) -> tuple[Tensor, Tensor]:
        """Means over the processes, in one message. values: [K]; slopes: [K, L, H]."""
        packed = torch.cat([values.to(slopes).unsqueeze(1), slopes.flatten(1)], dim=1)
        packed = self.accelerator.reduce(packed, reduction="mean")
        return packed[:, 0], packed[:, 1:].view_as(slopes)

    def _check_finite(self, names: list[str], values: Tensor, slopes: Tensor, items: list[int]) -> None:
        finite = values.isfinite() & slopes.flatten(1).isfinite().all(1)
        if finite.all():
            return
        name = names[int((~finite).nonzero()[0])]
        where = f"dataset items {items}" + (" and those of the other processes" if self.world > 1 else "")
        raise InfopruneError(
            f"step {self.step}: the {name} loss or its gradient is not finite on this step's batch ({where}); "
            "look for NaN in the weights or these items, or lower the learning rate"
        )

    # -- results

    def finish(self) -> HeadScores:
        """Write and return the scores."""
        provenance = {
            **{key: self.identity[key] for key in ("fingerprint", "items", "processes")},
            "model": str(getattr(getattr(self.model, "config", None), "_name_or_path", "")),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }
        scores = HeadScores.of(
            "zeta",
            self.adapter.architecture,
            self.gates.scores(),
            settings=asdict(self.settings),
            provenance=provenance,
        )
        if self.accelerator.is_main_process:
            plot(self.out_dir / PICTURE, self.gates.zeta().detach(), self.log.lines())
            scores.write(self.out_dir / SCORES)
        self.accelerator.wait_for_everyone()
        return scores

    def _progress(self) -> Progress:
        return progress_bars(shown=self.accelerator.is_main_process)
