"""Whole towers on the C++ kernels."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModel
from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLVisionConfig

from infoprune_rt.plan import Quantization
from infoprune_rt.runtime.blocks import BlockSpec, BlockStack
from infoprune_rt.runtime.cpu_engine import CpuEngine
from infoprune_rt.runtime.encoder import CompactEncoder
from infoprune_rt.towers import adapter_by_name
from infoprune_rt.towers.base import TowerShape

BLOCKS = [
    {"num_heads": 4, "ffn": "dense", "size": None},
    {"num_heads": 0, "ffn": "lowrank", "size": 7},
    {"num_heads": 3, "ffn": "merged", "size": None},
    {"num_heads": 1, "ffn": "neurons", "size": 33},
    {"num_heads": 2, "ffn": "hybrid", "size": 50, "linear": 21},
]
GRIDS = torch.tensor([[1, 4, 6], [2, 2, 2], [1, 8, 10]])


def compact_tower(dtype: torch.dtype = torch.float32, blocks: list[dict[str, Any]] = BLOCKS) -> CompactEncoder:
    torch.manual_seed(0)
    dense = Qwen2VLVisionConfig(depth=len(BLOCKS), embed_dim=64, hidden_size=48, num_heads=4, mlp_ratio=2)
    tower = AutoModel.from_config(adapter_by_name("qwen2_vl").compact_config(dense, blocks))
    for name, parameter in tower.named_parameters():
        if name.endswith("_scale"):
            torch.nn.init.constant_(parameter, 2**-10)
        elif parameter.is_floating_point():
            torch.nn.init.normal_(parameter, std=0.1 if parameter.ndim > 1 else 0.3)
    return tower.to(dtype).eval()


def pixels(tower: CompactEncoder) -> Tensor:
    return torch.randn(int(GRIDS.prod(1).sum()), 1176).to(tower.dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_the_tower_answers_as_the_plain_backend(dtype: torch.dtype) -> None:
    """No further from the float64 tower than twice the plain backend in the same dtype."""
    tower = compact_tower(dtype)
    x = pixels(tower)
    tower.backend = "plain"
    plain = tower(x, GRIDS).pooler_output
    tower.backend = "csrc"
    mine = tower(x, GRIDS).pooler_output
    exact = tower.double()(x.double(), GRIDS).pooler_output  # float64 is served by the plain operators
    rounding = torch.finfo(dtype).eps * exact.abs().max()
    assert (mine - exact).abs().max() <= 2 * (plain - exact).abs().max() + rounding
    assert not torch.equal(mine, plain)


@torch.no_grad()
def test_hidden_states_end_where_the_whole_pass_does() -> None:
    tower = compact_tower()
    tower.backend = "csrc"
    x = pixels(tower)
    whole, step_by_step = tower(x, GRIDS), tower(x, GRIDS, output_hidden_states=True)
    assert torch.equal(whole.last_hidden_state, step_by_step.hidden_states[-1])
    assert len(step_by_step.hidden_states) == len(BLOCKS) + 1


@torch.no_grad()
def test_changed_weights_are_packed_again() -> None:
    tower = compact_tower()
    x = pixels(tower)
    tower.backend = "csrc"
    before = tower(x, GRIDS).pooler_output
    tower.blocks[0].qkv.weight.mul_(0.5)
    after = tower(x, GRIDS).pooler_output
    assert not torch.allclose(before, after)
    tower.backend = "plain"
    torch.testing.assert_close(after, tower(x, GRIDS).pooler_output, rtol=1e-3, atol=1e-4)


@torch.no_grad()
def test_weights_that_lie_where_others_were_are_packed_again() -> None:
    """There and back through another dtype: the allocator may well give the same addresses again."""
    tower = compact_tower()
    tower.backend = "csrc"
    x = pixels(tower)
    tower(x, GRIDS)
    engine = tower._engine
    assert engine is not None
    addresses = {parameter.data_ptr() for parameter in tower.blocks.parameters()}
    tower.blocks.to(torch.bfloat16).to(torch.float32)
    assert addresses.isdisjoint(parameter.data_ptr() for parameter in tower.blocks.parameters())
    assert not engine.is_current(tower.blocks)


@torch.no_grad()
def test_moved_weights_take_their_packed_copies_with_them() -> None:
    tower = compact_tower()
    tower.backend = "csrc"
    tower(pixels(tower), GRIDS)
    engine = tower._engine
    tower.float()  # moves nothing
    assert tower._engine is engine is not None
    torch.nn.ModuleList([tower]).to("meta")
    assert tower._engine is None


@torch.no_grad()
def test_copies_and_pickles_leave_the_packed_weights_behind() -> None:
    tower = compact_tower()
    tower.backend = "csrc"
    x = pixels(tower)
    expected = tower(x, GRIDS).pooler_output
    stored = io.BytesIO()
    torch.save(tower, stored)
    stored.seek(0)
    for copied in (copy.deepcopy(tower), torch.load(stored, weights_only=False)):
        assert copied._engine is None
        assert torch.equal(copied(x, GRIDS).pooler_output, expected)
        assert copied._engine is not None
    assert tower._engine is not None


@torch.no_grad()
def test_hooks_on_blocks_are_served_by_the_plain_operators() -> None:
    tower = compact_tower()
    tower.backend = "csrc"
    x = pixels(tower)
    seen: list[Tensor] = []
    handle = tower.blocks[1].register_forward_hook(lambda module, inputs, output: seen.append(output))
    tower(x, GRIDS)
    assert len(seen) == 1
    handle.remove()
    tower(x, GRIDS)
    assert len(seen) == 1
    assert tower._engine is not None


def test_inference_mode_and_no_grad_share_an_engine() -> None:
    tower = compact_tower()
    tower.backend = "csrc"
    x = pixels(tower)
    with torch.inference_mode():
        first = tower(x, GRIDS).pooler_output
    engine = tower._engine
    with torch.no_grad():
        assert torch.equal(tower(x, GRIDS).pooler_output, first)
    assert tower._engine is engine is not None


@torch.no_grad()
def test_no_rows_at_all() -> None:
    tower = compact_tower()
    nothing, bounds = torch.empty(0, 64), torch.tensor([0])
    assert CpuEngine(tower.blocks).run(nothing, bounds, None, None).shape == (0, 64)


def test_training_is_left_to_the_plain_operators() -> None:
    tower = compact_tower()
    tower.backend = "csrc"
    tower(pixels(tower), GRIDS).pooler_output.sum().backward()
    assert tower.blocks[0].qkv.weight.grad is not None


@torch.no_grad()
def test_the_stream_that_came_in_is_left_alone() -> None:
    tower = compact_tower()
    tower.backend = "csrc"
    x = pixels(tower)
    first = tower(x, GRIDS).pooler_output
    assert torch.equal(first, tower(x, GRIDS).pooler_output)


@torch.no_grad()
def test_layers_around_the_blocks_run_on_the_kernels_until_something_else_wants_them() -> None:
    tower = compact_tower()
    tower.backend = "csrc"
    x = pixels(tower)
    first = tower(x, GRIDS).pooler_output
    merger = tower.merger
    assert set(tower._packed) == {tower.patch_embed, merger.fc1, merger.fc2}
    merger.fc1.weight.mul_(2)
    tower.patch_embed.weight = torch.nn.Parameter(tower.patch_embed.weight * 0.5)
    changed = tower(x, GRIDS).pooler_output
    tower.backend = "plain"
    expected = tower(x, GRIDS).pooler_output
    assert not torch.allclose(first, changed)
    assert torch.allclose(changed, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    tower.backend = "csrc"
    seen = []
    merger.fc2.register_forward_hook(lambda module, args, out: seen.append(out))
    hooked = tower(x, GRIDS).pooler_output
    assert torch.equal(seen[0], hooked)
    assert set(tower._packed) == {tower.patch_embed, merger.fc1}


@torch.no_grad()
def test_working_memory_is_kept_bounded_and_released() -> None:
    tower = compact_tower()
    tower.backend = "csrc"
    tower.release_workspace()  # nothing has run yet
    x = pixels(tower)
    expected = tower(x, GRIDS).pooler_output
    spare = tower._engine._spare
    (kept,) = spare
    small = torch.tensor([[1, 2, 2]])
    tower(x[:4], small)
    with torch.inference_mode():
        tower(x, GRIDS)
    assert [held.data_ptr() for held in spare] == [kept.data_ptr()]
    assert torch.equal(tower(x, GRIDS).pooler_output, expected)
    tower.release_workspace()
    assert not spare
    assert torch.ops.infoprune_cpu.workspace_bytes() == 0
    assert torch.equal(tower(x, GRIDS).pooler_output, expected)


@torch.no_grad()
def test_passes_in_several_threads_share_no_memory() -> None:
    from concurrent.futures import ThreadPoolExecutor

    tower = compact_tower()
    tower.backend = "csrc"
    inputs = [pixels(tower) for _ in range(6)]
    expected = [tower(x, GRIDS).pooler_output for x in inputs]

    def run(x: Tensor) -> Tensor:
        with torch.no_grad():  # each thread has its own mode
            return tower(x, GRIDS).pooler_output

    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(run, inputs * 4))
    assert all(torch.equal(mine, truth) for mine, truth in zip(found, expected * 4, strict=True))
    assert len(tower._engine._spare) <= 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_int8_weights_are_served(dtype: torch.dtype) -> None:
    """As far from the same tower in float64 as the plain backend, give or take what activations near a step cost."""
    tower = compact_tower(dtype, [block | {"quantize": "int8"} for block in BLOCKS])
    x = pixels(tower)
    tower.backend = "plain"
    plain = tower(x, GRIDS).pooler_output
    tower.backend = "csrc"
    mine = tower(x, GRIDS).pooler_output
    assert tower._engine is not None
    exact = tower.double()(x.double(), GRIDS).pooler_output
    smooth = dequantised(tower)(x.double(), GRIDS).pooler_output
    quantising = (exact - smooth).abs().max()
    assert (mine - exact).abs().max() <= 2 * (plain - exact).abs().max() + 2 * quantising
    assert not torch.equal(mine, plain)


@pytest.mark.parametrize("quantize", [None, "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_gated_ffns_are_served(dtype: torch.dtype, quantize: Quantization | None) -> None:
    """As the plain operators: no tower that is read from a file has such FFNs yet. With int8, activations that lie
    between two steps may be rounded to either.
    """
    shape = TowerShape(2, 40, 2, 8, 37, "silu_gated", 1e-6)
    blocks = BlockStack([BlockSpec(1, quantize=quantize), BlockSpec(0, "neurons", 19, quantize=quantize)], shape)
    for name, parameter in blocks.named_parameters():
        if parameter.dtype == torch.int8:
            parameter.random_(-127, 128)
        elif not name.endswith("_scale"):
            torch.nn.init.normal_(parameter, std=0.3)
        else:
            torch.nn.init.constant_(parameter, 2**-9)
    blocks.to(dtype)
    x, bounds = torch.randn(90, 40).to(dtype), torch.tensor([0, 30, 90])
    mine, theirs = CpuEngine(blocks).run(x, bounds, None, None), blocks(x, bounds)
    exact = blocks.double()(x.double(), bounds)
    rounding = (2**-6 if quantize else torch.finfo(dtype).eps) * exact.abs().max()
    assert (mine - exact).abs().max() <= 2 * (theirs - exact).abs().max() + rounding


def dequantised(tower: CompactEncoder) -> CompactEncoder:
    """The float tower that int8 weights stand for."""
    config = adapter_by_name("qwen2_vl").compact_config(tower.config, BLOCKS)
    same = AutoModel.from_config(config).to(tower.dtype).eval()
    state = tower.state_dict()
    scales = {name.removesuffix("_scale"): state.pop(name) for name in list(state) if name.endswith("_scale")}
    same.load_state_dict(state | {name: state[name] * scale[:, None] for name, scale in scales.items()})
    return same


def test_weights_that_a_fused_optimiser_changed_are_packed_again() -> None:
    """PyTorch does not count its steps as writing."""
    tower = compact_tower()
    tower.backend = "csrc"
    x = pixels(tower)
    optimiser = torch.optim.AdamW(tower.parameters(), lr=0.1, fused=True)
    with torch.no_grad():
        before = tower(x, GRIDS).pooler_output
    tower(x, GRIDS).pooler_output.square().mean().backward()
    optimiser.step()
    with torch.no_grad():
        mine = tower(x, GRIDS).pooler_output
        tower.backend = "plain"
        plain = tower(x, GRIDS).pooler_output
    assert not torch.allclose(before, plain, rtol=1e-2)
    assert torch.allclose(mine, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))


@torch.no_grad()
def test_what_a_hook_kept_is_not_written_over() -> None:
    tower = compact_tower()
    tower.backend = "csrc"
    kept: list[tuple[Tensor, Tensor]] = []
    tower.patch_embed.register_forward_hook(lambda module, args, out: kept.append((out, out.clone())))
    tower(pixels(tower), GRIDS)
    assert torch.equal(*kept[0])


@torch.no_grad()
def test_vectors_need_not_be_contiguous() -> None:
    tower = compact_tower()
    norm = tower.blocks[0].norm1
    norm.weight = torch.nn.Parameter(torch.randn(128)[::2])
    norm.bias = torch.nn.Parameter(torch.randn(1).expand(64))
    x = pixels(tower)
    tower.backend = "plain"
    plain = tower(x, GRIDS).pooler_output
    tower.backend = "csrc"
    assert torch.allclose(tower(x, GRIDS).pooler_output, plain, rtol=1e-4, atol=1e-5 * float(plain.abs().max()))


@torch.no_grad()
def test_hooks_on_all_modules_and_counters_see_every_block() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    tower = compact_tower()
    tower.backend = "csrc"
    x = pixels(tower)
    tower(x, GRIDS)
    seen = []
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, args, out: seen.append(module))
    try:
        tower(x, GRIDS)
    finally:
        handle.remove()
    assert set(tower.blocks) <= set(seen)
    with FlopCounterMode(display=False) as counter:
        tower(x, GRIDS)
    assert counter.get_total_flops() > 0


@pytest.mark.parametrize("backend", ["plain", "csrc"])
@torch.no_grad()
def test_autocast_changes_nothing(backend: str) -> None:
    tower = compact_tower()
    tower.backend = backend
    x = pixels(tower)
    expected = tower(x, GRIDS).pooler_output
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(tower(x, GRIDS).pooler_output, expected)
