"""A whole tower on the GPU's kernels, interpreted: through torch.ops, and as a captured pass would run it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from definitions import assert_close
from infoprune_kernels import attention_work
from torch import Tensor
from transformers import AutoModel
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig

from infoprune_rt.ops import SCHEMAS, triton_backend
from infoprune_rt.runtime.pack_buffers import PackBuffers
from infoprune_rt.towers import adapter_by_name
from infoprune_rt.towers.qwen2_vl import pack, patch_rows

BLOCKS = [
    {"num_heads": 3, "ffn": "lowrank", "size": 24},
    {"num_heads": 0, "ffn": "neurons", "size": 20},
    {"num_heads": 1, "ffn": "merged", "size": None},
    {"num_heads": 2, "ffn": "dense", "size": None},
]
GRIDS = torch.tensor([[1, 4, 6], [2, 2, 2], [1, 2, 14]])


@pytest.fixture(autouse=True)
def kernels_serve_the_cpu() -> Iterator[None]:
    """Tensors of the CPU go where those of a GPU go."""
    library = torch.library.Library("infoprune", "IMPL")  # type: ignore[no-untyped-call]
    for name in SCHEMAS:
        library.impl(name, triton_backend.on_cuda(name), "CPU")  # type: ignore[no-untyped-call]
    yield
    library._destroy()  # type: ignore[no-untyped-call]


@pytest.fixture
def tower() -> Any:
    torch.manual_seed(0)
    dense = Qwen2VLVisionConfig(depth=len(BLOCKS), embed_dim=64, hidden_size=48, num_heads=4, mlp_ratio=2)
    tower = AutoModel.from_config(adapter_by_name("qwen2_vl").compact_config(dense, BLOCKS))
    for parameter in tower.parameters():
        torch.nn.init.normal_(parameter, std=0.1 if parameter.ndim > 1 else 0.3)
    return tower.half().eval()


def in_plain_pytorch(tower: Any, dtype: torch.dtype, pixels: Tensor) -> Tensor:
    tower.to(dtype)
    with triton_backend.demanding("plain"):
        out: Tensor = tower.blocks(*stream_of(tower, pixels.to(dtype)))
    tower.half()
    return out


def stream_of(tower: Any, pixels: Tensor) -> tuple[Any, ...]:
    x = tower.patch_embed(patch_rows(pixels, tower.patch_embed.weight))
    stream = pack(tower.config, GRIDS, x)
    return x, torch.tensor(stream.cu_seqlens), stream.cos, stream.sin


@torch.no_grad()
def test_it_answers_as_plain_pytorch(tower: Any) -> None:
    pixels = torch.randn(int(GRIDS.prod(1).sum()), 1176).half()
    theirs, exact = (in_plain_pytorch(tower, dtype, pixels) for dtype in (torch.float16, torch.float64))
    with triton_backend.demanding("triton"):
        mine = tower.blocks(*stream_of(tower, pixels))
    assert not torch.equal(mine, theirs)
    assert_close((mine,), (theirs,), (exact,))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # what stands behind the pack may overflow; numpy tells of it
@torch.no_grad()
def test_a_pass_over_buffers_with_room_to_spare_gives_the_same(tower: Any) -> None:
    """Twice: the second pack is smaller and finds the first one's rows behind its own."""
    x, bounds, cos, sin = stream_of(tower, torch.randn(int(GRIDS.prod(1).sum()), 1176).half())
    buffers = PackBuffers(96, {32: 12, 64: 10}, 64, 16, x)
    for count in (4, 2):
        bounds, rows = bounds[: count + 1], int(bounds[count])
        with triton_backend.demanding("triton"):
            expected = tower.blocks(x[:rows], bounds, cos[:rows], sin[:rows])
        buffers.load(x[:rows], {cut: attention_work(bounds, cut) for cut in (32, 64)}, cos[:rows], sin[:rows])
        made = buffers.run(tower.blocks, 80, {64: 8})
        assert made.shape == (80, 64)
        assert torch.equal(made[:rows], expected)
