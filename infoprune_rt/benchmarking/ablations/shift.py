"""Shifted pictures: does what was calibrated and learnt on one style hold on another?"""

from __future__ import annotations

from functools import lru_cache, partial
from typing import Any

from infoprune_rt.benchmarking.ablations.epsilon import sizes
from infoprune_rt.benchmarking.ablations.jobs import Cost, Job
from infoprune_rt.benchmarking.ablations.objectives import PAPER, cost, scores
from infoprune_rt.benchmarking.ablations.styles import PLAIN, STYLES, restyled
from infoprune_rt.benchmarking.ablations.subject import Subject
from infoprune_rt.demo.variants import Variant
from infoprune_rt.evaluation.dataset import VQADataset
from infoprune_rt.evaluation.training_batches import VQABatches
from infoprune_rt.plan import FFNPlan
from infoprune_rt.pruning.selection import budget

GROUP = "shift"
DENSE, FFN, BOTH = "dense", "FFN neurons", "heads 50 %, refit, neurons"
KEEP = 0.5


def jobs(subject: Subject) -> list[Job]:
    """Every recipe fitted on plain pictures and tested on each style, and the other way round: fitted on that style.

    The recipe with heads learns its zeta, too, on the style it is fitted on.
    """
    study = _Study(subject)
    cases = [(PLAIN, PLAIN)] + [case for style in STYLES for case in ((PLAIN, style), (style, style), (style, PLAIN))]
    cases.sort(key=lambda case: case[0] != PLAIN)  # each fit is made once for all that it is tested on
    found = [study.job(DENSE, None, None, style) for style in (PLAIN, *STYLES)]
    found += [study.job(FFN, None, *case) for case in cases]
    found += [study.job(BOTH, seed, *case) for seed in range(subject.options.seeds) for case in cases]
    return found


class _Study:
    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self.data = lru_cache(maxsize=None)(self._data)
        self.fitted = lru_cache(maxsize=1)(self._fitted)

    def job(self, name: str, seed: int | None, fitted_on: str | None, tested_on: str) -> Job:
        """One recipe, fitted on one style, tested on another."""
        key = {"group": GROUP, "name": name, "seed": seed, "fitted_on": fitted_on, "tested_on": tested_on}
        if seed is None or fitted_on is None:
            taken = Cost(len(self.subject.data.test), fits=int(name != DENSE))
        else:
            taken = cost(self.subject, PAPER, seed, fits=1, style=fitted_on)
        return Job(key, partial(self._measure, name, seed, fitted_on, tested_on), taken)

    def _measure(self, name: str, seed: int | None, fitted_on: str | None, tested_on: str) -> dict[str, Any]:
        test = self.data("test", tested_on)
        if fitted_on is None:
            return self.subject.dense(test)
        return self.subject.measured(self.fitted(name, seed, fitted_on), test)

    def _fitted(self, name: str, seed: int | None, style: str) -> Variant:
        subject, calibration = self.subject, self.data("calibration", style)
        masks = None
        if seed is not None:
            batches = VQABatches(calibration, subject.vlm.processor)
            masks = budget(scores(subject, PAPER, seed, batches, style), KEEP, used_blocks=subject.used_blocks)
        neurons = FFNPlan(mode="neurons", size=_neurons(subject))
        return subject.bench_on(calibration).variant(name, name, subject.plan(masks, neurons))

    def _data(self, which: str, style: str) -> VQADataset:
        dataset: VQADataset = getattr(self.subject.data, which)
        return restyled(dataset, style, self.subject.pictures / f"{which}-{style}")


def _neurons(subject: Subject) -> int:
    """A middling size among those of the epsilon study: a quarter of the neurons, by default."""
    found = sizes(subject, "neurons")
    return found[len(found) // 2]
