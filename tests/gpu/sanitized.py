"""Every kernel on small odd shapes, for compute-sanitizer: ``compute-sanitizer python tests/gpu/sanitized.py``.

What the tables leave to many tokens gets its tiles here: attention's large one, and the low-rank FFN in one kernel.

Each tensor has memory of its own, so that what is read or written beside one is seen.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

if __name__ == "__main__":
    os.environ["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # before torch asks for memory

import torch
from infoprune_kernels import attention, attention_work, ffn_dense, ffn_lowrank, linear_residual, norm_qkv_rope
from infoprune_kernels.attention import launch_attention
from infoprune_kernels.attention_hopper import CANDIDATES, launch_attention_hopper
from infoprune_kernels.configs import Tile
from infoprune_kernels.ffn_lowrank import launch_ffn_lowrank
from torch import Tensor

DTYPE = torch.bfloat16
TOKENS, WIDTH, HEADS = 37, 72, 3
ATTENTION_TILES = Tile(64, 64, 4, 2), Tile(128, 64, 8, 2)
LOWRANK_TILES = Tile(64, 64, 8, 2, 64), Tile(128, 64, 8, 2, 64)


def random(*sizes: int, dtype: torch.dtype = DTYPE) -> Tensor:
    """Made on the host: PyTorch's own kernels are not what is looked at."""
    return torch.randn(*sizes).to("cuda", dtype)


def every_kernel() -> Iterator[tuple[str, Tensor]]:
    """Its name and what it made."""
    x, norm = random(TOKENS, WIDTH), (random(WIDTH), random(WIDTH), 1e-6)
    for dim in (80, 64):
        rows = 3 * HEADS * dim
        tables = random(TOKENS, dim, dtype=torch.float32), random(TOKENS, dim, dtype=torch.float32)
        q, k, v = norm_qkv_rope(x, *norm, random(rows, WIDTH), random(rows), *tables, HEADS, dim)
        yield f"norm_qkv_rope, heads of {dim}", torch.stack((q, k, v))
        bounds = torch.tensor([0, 20, 20, 21, TOKENS])
        yield f"attention, heads of {dim}", attention(q, k, v, bounds, dim**-0.5)
        launches = [(launch_attention, tile) for tile in ATTENTION_TILES]
        if torch.cuda.get_device_capability() >= (9, 0):
            launches += [(launch_attention_hopper, tile) for tile in CANDIDATES]
        for launch, tile in launches:
            out = q.new_empty(TOKENS, HEADS * dim)
            launch(q, k, v, out, attention_work(bounds, tile.block_m).to("cuda"), dim**-0.5, tile)
            yield f"{launch.__name__}, heads of {dim}, {tile}", out
    inner = HEADS * 80
    yield "linear_residual", linear_residual(random(TOKENS, inner), random(WIDTH, inner), random(WIDTH), x)
    for rank in (20, 50):
        args = (x, *norm, random(rank, WIDTH), random(WIDTH, rank), random(WIDTH))
        yield f"ffn_lowrank, rank {rank}", ffn_lowrank(*args)
        for tile in LOWRANK_TILES:
            yield f"launch_ffn_lowrank, rank {rank}, {tile}", launch_ffn_lowrank(*args, tile)
    yield "ffn_lowrank, merged", ffn_lowrank(x, *norm, random(WIDTH, WIDTH), None, random(WIDTH))
    first, second = (random(100, WIDTH), random(100)), (random(WIDTH, 100), random(WIDTH))
    yield "ffn_dense", ffn_dense(x, *norm, *first, *second, "quick_gelu")
    yield "ffn_dense, hybrid", ffn_dense(x, *norm, *first, *second, "quick_gelu", 30)
    gated = random(200, WIDTH), random(200)
    yield "ffn_dense, gated", ffn_dense(x, *norm, *gated, *second, "silu_gated")


if __name__ == "__main__":
    for name, made in every_kernel():
        assert bool(made.cpu().isfinite().all()), f"{name} made what is no number"
        print(name, flush=True)
    print("every kernel ran")
