"""One workload through all rows: answers checked, products counted, then timed in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from infoprune_rt.benchmarking.cpu_tower.memory import can_measure, growth
from infoprune_rt.benchmarking.flop_trace import counted_flops
from infoprune_rt.benchmarking.table1.checks import Check, check
from infoprune_rt.benchmarking.table1.costs import costs
from infoprune_rt.benchmarking.table1.methods import Method
from infoprune_rt.benchmarking.table1.stopwatch import STAGES, Pass, generate
from infoprune_rt.benchmarking.table1.subject import Subject
from infoprune_rt.benchmarking.table1.wider import in_wider
from infoprune_rt.benchmarking.table1.workloads import Workload, pictures, prompt
from infoprune_rt.benchmarking.timing import REST, percentiles
from infoprune_rt.hardware import available_bytes
from infoprune_rt.runtime import gpu_memory

Row = dict[str, Any]
Step = Callable[[str], None]  # told what is about to be done
_PREPARATIONS = 5  # preparations of the pictures that are timed
_EAGER_BYTES = 12  # per score
_PREPARED_AT_FIRST = ("accelerated", "compiled", "kernels")  # towers whose first pass packs weights or compiles


def measure(
    subject: Subject, rows: Sequence[Method], work: Workload, *, new_tokens: int, rounds: int, step: Step
) -> list[Row]:
    """A row for each method, in their order, but for dense eager attention where its scores do not fit into memory."""
    inputs, preprocess_ms = prepare(subject, work)
    bench = _Bench(subject, inputs, new_tokens)
    rows = [method for method in rows if method.attention == "sdpa" or _eager_fits(subject, inputs)]
    first = _first_passes(bench, rows, lambda key: step(f"{work.name}: {key}: checking"))
    times: dict[str, dict[str, list[float]]] = {method.key: {stage: [] for stage in STAGES} for method in rows}
    for number in range(rounds):
        for method in rows:
            step(f"{work.name}: {method.key}: round {number + 1} of {rounds}")
            for stage, ms in bench.run(method).ms.items():
                times[method.key][stage].append(ms)
    made = []
    for method in rows:
        cost, checked = costs(subject, method, inputs), first.checks[method.key]
        made.append(
            {
                "method": method.name,
                "execution": method.execution,
                "engine": method.engine,
                "workload": work.name,
                "tokens": inputs["input_ids"].shape[1],
                "patches": int(inputs["image_grid_thw"].prod(1).sum()),
                **asdict(cost),
                "flops_counted": first.counted[method.structure],
                **_stage_times(preprocess_ms, times[method.key]),
                "new_tokens": new_tokens,
                "rounds": rounds,
                "peak_bytes": first.peak_bytes[method.key],
                "accuracy": None,
                "error": checked.error,
                "allowed_error": checked.allowed,
                "checked": checked.right and cost.flops == first.counted[method.structure],
            }
        )
    return made


def prepare(subject: Subject, work: Workload) -> tuple[dict[str, Tensor], list[float]]:
    """The model's inputs, and the milliseconds of preparing the pictures."""
    images = pictures(work)
    taken = []
    for _ in range(_PREPARATIONS):
        began = time.perf_counter()
        pixels = dict(subject.image_processor(images, return_tensors="pt"))
        taken.append(1000 * (time.perf_counter() - began))
    device, dtype = subject.model.device, subject.model.dtype
    pixels["pixel_values"] = pixels["pixel_values"].to(dtype)
    return {name: value.to(device) for name, value in prompt(subject.model.config, pixels).items()}, taken


def _eager_fits(subject: Subject, inputs: Mapping[str, Tensor]) -> bool:
    """Whether the tower's scores of the largest picture do: in its dtype twice, and in the softmax's float32."""
    longest = int(inputs["image_grid_thw"][:, 1:].prod(1).max())
    needed = subject.shape.num_heads * longest**2 * _EAGER_BYTES
    free = available_bytes(subject.model.device)
    return free is None or needed <= free


class _Bench:
    """Runs rows on one prompt."""

    def __init__(self, subject: Subject, inputs: dict[str, Tensor], new_tokens: int) -> None:
        self.subject, self.inputs, self.new_tokens = subject, inputs, new_tokens

    def run(self, method: Method) -> Pass:
        """One generation, after a rest in which the last one's threads stop waiting for more work."""
        with self.subject.standing(method) as tower:
            time.sleep(REST)
            return generate(self.subject.model, tower, self.inputs, self.new_tokens)

    def exact(self, method: Method) -> tuple[Tensor, int]:
        """The first token's logits of a row in a wider dtype, and the products that PyTorch sees on the way there."""
        model = self.subject.model
        with self.subject.standing(method), in_wider(model, model.dtype):
            return self._logits()

    def count(self, method: Method) -> int:
        """Products of the pass to the first token, as PyTorch sees them."""
        with self.subject.standing(method):
            return self._logits()[1]

    @torch.inference_mode()
    def _logits(self) -> tuple[Tensor, int]:
        made: list[Tensor] = []
        counted = counted_flops(lambda: made.append(self.subject.model(**self.inputs, logits_to_keep=1).logits))
        return made[0][0, -1].double().cpu(), counted

    def run_for_memory(self, method: Method) -> tuple[Pass, int | None]:
        """One generation, and the bytes by which memory peaks in it above what model and towers take.

        None where the system does not tell.
        """
        device = self.subject.model.device
        made: list[Pass] = []
        with self.subject.standing(method) as tower:

            def run() -> None:
                made.append(generate(self.subject.model, tower, self.inputs, self.new_tokens))

            grown: int | None = None
            if device.type == "cuda":
                grown = gpu_memory.growth(run, device)
            elif can_measure():
                grown = growth(run)
            else:
                run()
        return made[0], grown


@dataclass
class _FirstPasses:
    """What is found out before anything is timed; counted: products, by structure."""

    checks: dict[str, Check] = field(default_factory=dict)
    peak_bytes: dict[str, int | None] = field(default_factory=dict)
    counted: dict[tuple[str, str | None], int] = field(default_factory=dict)


def _first_passes(bench: _Bench, rows: Sequence[Method], step: Step) -> _FirstPasses:
    """Each row's first logits, held against its reference's in the same dtype and in a wider one; memory; products."""
    exact: dict[str, Tensor] = {}
    logits: dict[str, Tensor] = {}
    found = _FirstPasses()
    for method in rows:
        step(method.key)
        if method.tower in _PREPARED_AT_FIRST:
            bench.run(method)
        done, found.peak_bytes[method.key] = bench.run_for_memory(method)
        logits[method.key] = done.logits
        if method.reference is None:
            exact[method.key], found.counted[method.structure] = bench.exact(method)
        if method.structure not in found.counted:
            found.counted[method.structure] = bench.count(method)
        reference, dtype = method.reference or method.key, bench.subject.model.dtype
        found.checks[method.key] = check(logits[method.key], logits[reference], exact[reference], dtype)
    return found


def _stage_times(preprocess_ms: list[float], times: dict[str, list[float]]) -> dict[str, float]:
    found = {}
    for stage, taken in {"preprocess": preprocess_ms, **times}.items():
        for name, value in percentiles(taken).items():
            found[f"{stage}_{name}_ms"] = value
    return found
