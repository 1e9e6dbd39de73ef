"""The attention operator alone, on the heads of one compact block: ours against scaled_dot_product_attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from infoprune_rt.benchmarking.cpu_tower.cases import DTYPE, HEAD_DIM, HEADS, Case
from infoprune_rt.benchmarking.cpu_tower.measuring import Candidate, relative_error
from infoprune_rt.ops.cpu_library import isa, load_library

SDPA, OURS = "attention, SDPA", "attention, csrc"


def attention_case(threads: int) -> Case:
    """One image of 4096 patches; no blocks, only the operator."""
    return Case(((64, 64),), threads, blocks=0)


def attention_candidates(case: Case) -> list[Candidate]:
    """Both on the same q, k and v (T x heads x head_dim), as they come out of a block's projection."""
    torch.manual_seed(2)
    tokens, scale = case.patches, HEAD_DIM**-0.5
    q, k, v = torch.randn(3, tokens, HEADS, HEAD_DIM).to(DTYPE)
    exact = _sdpa(q.float(), k.float(), v.float(), scale)
    flops = 4.0 * tokens**2 * HEADS * HEAD_DIM
    bounds = torch.tensor([0, tokens])
    load_library()
    best = isa()

    def ours() -> Tensor:
        out: Tensor = q.clone()  # the kernel leaves its result where the queries were
        torch.ops.infoprune_cpu.attention_(out, k, v, bounds, scale, best)
        return out

    dtype = str(DTYPE).removeprefix("torch.")
    runs = {SDPA: lambda: _sdpa(q, k, v, scale), OURS: ours}
    return [Candidate(name, run, relative_error(run(), exact), flops, dtype) for name, run in runs.items()]


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """T x heads x head_dim in and out."""
    q, k, v = (part.transpose(0, 1)[None] for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, scale=scale)[0].transpose(0, 1)
