"""The ways to run a tower that are compared, by name."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from infoprune_rt.benchmarking.cpu_tower import peers
from infoprune_rt.benchmarking.cpu_tower.cases import DTYPE, FULL_DEPTH, Case, Subject
from infoprune_rt.benchmarking.cpu_tower.export import plain_module
from infoprune_rt.compression import compress, make_plan, quantize_tower
from infoprune_rt.runtime.encoder import CompactEncoder
from infoprune_rt.towers import adapter_by_name

Run = Callable[[], Tensor]
DENSE, OUR_DENSE = "transformers, dense", "dense, csrc"
PLAIN, COMPILED = "compact, plain PyTorch", "compact, torch.compile"
OPENVINO, ORT, ORT_INT8 = "compact, OpenVINO", "compact, ONNX Runtime", "compact, ONNX Runtime int8"
OURS, ONE_BY_ONE, OUR_INT8 = "compact, csrc", "compact, csrc, image by image", "compact, csrc int8"


@dataclass(frozen=True)
class Contender:
    """One way to run a case's tower. build: everything that is done once; its result is what is timed.

    of: which of the two towers it is. dtype: what it computes in. needs: modules that may not be installed.
    """

    name: str
    build: Callable[[Subject], Run]
    of: Literal["compact", "dense"] = "compact"
    dtype: str = str(DTYPE).removeprefix("torch.")
    needs: tuple[str, ...] = ()


def _runs(tower: nn.Module, subject: Subject) -> Run:
    return lambda: tower(subject.pixels, subject.grid).pooler_output


def _on(tower: CompactEncoder, backend: str) -> CompactEncoder:
    """A copy in bfloat16."""
    copied: CompactEncoder = copy.deepcopy(tower).to(DTYPE)
    copied.backend = backend
    return copied


def _transformers(subject: Subject) -> Run:
    return _runs(copy.deepcopy(subject.dense).to(DTYPE), subject)


def _our_dense(subject: Subject) -> Run:
    """transformers' weights, nothing pruned."""
    adapter = adapter_by_name("qwen2_vl")
    plan = make_plan("qwen2_vl", adapter.shape(subject.dense.config), refit=False, sequential=False)
    return _runs(_on(compress(subject.dense, adapter, plan, list), "csrc"), subject)


def _plain(subject: Subject) -> Run:
    return _runs(_on(subject.compact, "plain"), subject)


def _compiled(subject: Subject) -> Run:
    """The operators' plain definitions, since the compiler cannot look into ours; the rest as the exported peers."""
    pixels = subject.pixels.to(DTYPE)
    module = plain_module(_on(subject.compact, "plain"), pixels, subject.grid)
    compiled = torch.compile(module, fullgraph=True, dynamic=False)
    return lambda: compiled(pixels)


def _ours(subject: Subject) -> Run:
    return _runs(_on(subject.compact, "csrc"), subject)


def _ours_int8(subject: Subject) -> Run:
    """As ``compress --quantize int8`` makes it."""
    return _runs(_on(quantize_tower(subject.compact), "csrc"), subject)


def _one_by_one(subject: Subject) -> Run:
    """Every image in a pass of its own."""
    tower = _on(subject.compact, "csrc")
    images = list(zip(torch.split(subject.pixels, subject.case.lengths), torch.split(subject.grid, 1), strict=True))
    return lambda: torch.cat([tower(pixels, grid).pooler_output for pixels, grid in images])


CONTENDERS = (
    Contender(DENSE, _transformers, of="dense"),
    Contender(OUR_DENSE, _our_dense, of="dense"),
    Contender(PLAIN, _plain),
    Contender(COMPILED, _compiled),
    Contender(OPENVINO, peers.openvino_bfloat16, needs=("openvino", *peers.EXPORTERS)),
    Contender(ORT, peers.onnxruntime_float32, dtype="float32", needs=("onnxruntime", *peers.EXPORTERS)),
    Contender(ORT_INT8, peers.onnxruntime_int8, dtype="int8", needs=("onnxruntime", *peers.EXPORTERS)),
    Contender(OURS, _ours),
    Contender(OUR_INT8, _ours_int8, dtype="int8"),
    Contender(ONE_BY_ONE, _one_by_one),
)
SLOW = (DENSE, ORT, ORT_INT8)  # seconds per pass on large inputs; never the fastest


def contenders(case: Case, quick: bool) -> list[Contender]:
    """Who runs a case.

    At full depth only the towers that the question there is about. Quick runs leave the slow ones out beyond 1024
    patches, and of the pack measure only what packing gains.
    """
    if case.blocks == FULL_DEPTH:
        return _named(DENSE, OUR_DENSE, PLAIN, OURS)
    if quick and len(case.grids) > 1:
        return _named(PLAIN, OURS, ONE_BY_ONE)
    left_out = {OUR_DENSE, *(SLOW if quick and case.patches > 1024 else ())}
    if len(case.grids) == 1:
        left_out.add(ONE_BY_ONE)
    return [c for c in CONTENDERS if c.name not in left_out]


def _named(*names: str) -> list[Contender]:
    return [c for c in CONTENDERS if c.name in names]
