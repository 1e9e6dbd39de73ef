"""Section 5.3: does L_eRank alone stall? Gradient norms of every term while one of them, or the whole loss, drives."""

from __future__ import annotations

from functools import partial
from typing import Any

from infoprune_rt.benchmarking.ablations.following import Drive, follow
from infoprune_rt.benchmarking.ablations.jobs import Cost, Job
from infoprune_rt.benchmarking.ablations.subject import Subject

GROUP = "gradients"
ERANK = "eRank alone"
WHOLE = "the whole loss"
ADAM_RATES = (0.005, 0.05, 0.5)
SGD_RATES = (0.05, 5.0, 500.0)


def jobs(subject: Subject) -> list[Job]:
    """eRank alone at several learning rates, with Adam and with plain gradient descent; and the whole loss."""
    options = subject.options
    whole = {"task": 1.0, "erank": options.beta, "ks": options.gamma}
    drives = [(ERANK, Drive({"erank": 1.0}, "Adam", lr)) for lr in ADAM_RATES]
    drives += [(ERANK, Drive({"erank": 1.0}, "SGD", lr)) for lr in SGD_RATES]
    drives += [(WHOLE, Drive(whole, "Adam", ADAM_RATES[1]))]
    found = []
    for name, drive in drives:
        steps = options.followed_steps
        task_steps = steps if "task" in drive.weights else steps // options.task_every
        key = {"group": GROUP, "name": name, "optimizer": drive.optimizer, "lr": drive.lr, "seed": 0}
        found.append(Job(key, partial(_measure, subject, drive), Cost(steps=steps, task_steps=task_steps)))
    return found


def _measure(subject: Subject, drive: Drive) -> dict[str, Any]:
    options = subject.options
    trace = follow(subject, drive, steps=options.followed_steps, seed=0, task_every=options.task_every)
    return {"weights": dict(drive.weights), **trace.columns}
