"""Gates moved by chosen terms of the loss while all terms are watched.

``train_heads`` learns zeta from the task loss with information terms beside it. Here any term may drive, alone too,
with Adam or with plain gradient descent, and the gradient of every term is recorded at every step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from infoprune_rt.benchmarking.ablations.subject import Subject
from infoprune_rt.pruning.activation_checkpoints import checkpointed_layers
from infoprune_rt.pruning.gate_gradient import collate_parts, gate_gradient
from infoprune_rt.pruning.head_gates import HeadGates
from infoprune_rt.pruning.head_gram import stream_gram
from infoprune_rt.pruning.information import erank_change, gated_gram, ks_spectral, singular_values_from_gram
from infoprune_rt.pruning.task_loss import batch_indices, frozen

Optimizer = Literal["Adam", "SGD"]
GRAM_ITEMS = 256
TERMS = ("task", "erank", "ks")
CLOSED = 0.5  # the threshold below which the paper's rule removes a head


@dataclass(frozen=True)
class Drive:
    """What moves the gates. weights: of the driving terms. jitter: standard deviation of the logits at the start,
    drawn by the seed; without it all gates begin equal, where the KS distance is least and has no gradient."""

    weights: Mapping[str, float]
    optimizer: Optimizer = "Adam"
    lr: float = 0.05
    jitter: float = 0.0


@dataclass(frozen=True)
class Trace:
    """columns: step by step, gradient norms with respect to the logits (None where not measured), the Euler identity's
    residuals, mean zeta and the number of heads with zeta < 0.5. zeta: [L, H], at the end."""

    columns: dict[str, list[float | None]]
    zeta: Tensor


def calibration_gram(subject: Subject, seed: int, limit: int = GRAM_ITEMS) -> Tensor:
    """Gram matrices [L, n, n] of the dense stream over ``limit`` calibration items drawn by the seed."""
    count = min(limit, len(subject.batches))
    items = np.random.default_rng([seed, 1]).permutation(len(subject.batches))[:count].tolist()
    size = subject.options.batch_size
    chunks = [items[i : i + size] for i in range(0, count, size)]
    return stream_gram(subject.vlm.model, subject.vlm.adapter, subject.batches, chunks)


def follow(subject: Subject, drive: Drive, *, steps: int, seed: int, task_every: int | None) -> Trace:
    """Take ``steps`` steps from open gates (logit 3). task_every: measure a task that does not drive so often; None:
    not at all. A task that drives is measured at every step."""
    model, heads = subject.vlm.model, subject.heads
    gram = calibration_gram(subject, seed)
    dense = singular_values_from_gram(gram)
    gates = HeadGates(len(heads.blocks), heads.num_heads).to(gram.device)
    _jitter(gates, drive.jitter, seed)
    kind = torch.optim.Adam if drive.optimizer == "Adam" else torch.optim.SGD
    optimizer = kind([gates.logits], lr=drive.lr)
    every = 1 if "task" in drive.weights else task_every
    columns: dict[str, list[float | None]] = {}
    with frozen(model), checkpointed_layers(model, subject.options.checkpoint_activations):
        for step in range(steps):
            zeta = gates.zeta()
            slopes = information_slopes(gram, dense, zeta, heads.head_dim)
            if every is not None and step % every == 0:
                slopes["task"] = _task_slope(subject, zeta, step, seed)
            by_logit = {
                name: torch.autograd.grad(zeta, gates.logits, slope, retain_graph=True)[0]
                for name, slope in slopes.items()
            }
            for name, value in _observed(zeta.detach(), slopes, by_logit).items():
                columns.setdefault(name, []).append(value)
            gates.logits.grad = torch.stack([w * by_logit[name] for name, w in drive.weights.items()]).sum(0)
            optimizer.step()
    return Trace(columns, gates.zeta().detach())


@torch.no_grad()
def _jitter(gates: HeadGates, deviation: float, seed: int) -> None:
    noise = torch.randn(gates.logits.shape, generator=torch.Generator().manual_seed(seed))
    gates.logits.add_(noise.to(gates.logits), alpha=deviation)


def _observed(zeta: Tensor, slopes: Mapping[str, Tensor], by_logit: Mapping[str, Tensor]) -> dict[str, float | None]:
    norms = {f"gradient_{name}": float(by_logit[name].norm()) if name in by_logit else None for name in TERMS}
    euler = {f"euler_{name}": euler_residual(zeta, slopes[name]) for name in ("erank", "ks")}
    return {**norms, **euler, "mean_zeta": float(zeta.mean()), "heads_closed": float((zeta < CLOSED).sum())}


def information_slopes(gram: Tensor, dense: Tensor, zeta: Tensor, head_dim: int) -> dict[str, Tensor]:
    """dL/dzeta [L, H] of both information terms, each the mean over blocks."""
    gated = singular_values_from_gram(gated_gram(gram, zeta, head_dim))
    terms = {"erank": erank_change(dense, gated).mean(), "ks": ks_spectral(dense, gated).mean()}
    return {name: torch.autograd.grad(term, zeta, retain_graph=True)[0] for name, term in terms.items()}


def _task_slope(subject: Subject, zeta: Tensor, step: int, seed: int) -> Tensor:
    size = subject.options.batch_size
    items = batch_indices(len(subject.batches), step * size, size, seed)
    parts = collate_parts(subject.batches, items, subject.options.micro_batch)
    on_model = zeta.detach().to(subject.vlm.model.device)
    _, slope = gate_gradient(subject.vlm.model, subject.heads, on_model, parts)
    return slope.to(zeta)


def euler_residual(zeta: Tensor, slope: Tensor) -> float:
    """max over blocks of |sum_h zeta_h g_h| / sum_h |zeta_h g_h|: 0 for a loss that is scale-free in every block
    (method.md section 1), 1 where all heads are pulled the same way; 0 where the gradient is. zeta, slope: [L, H]."""
    pulls = (zeta * slope).double()
    size = pulls.abs().sum(-1)
    return float((pulls.sum(-1).abs() / torch.where(size > 0, size, 1.0)).max())
