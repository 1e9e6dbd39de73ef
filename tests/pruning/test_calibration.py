"""The streaming pass counts what really flows through the tower, in memory that does not grow."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator

import pytest
import torch
from random_towers import ARCHITECTURES, make_plan, random_batch, random_tower
from torch import Tensor, nn

from infoprune_rt.errors import InfopruneError
from infoprune_rt.plan import FFNPlan
from infoprune_rt.pruning.apply import apply_plan
from infoprune_rt.pruning.calibration import Wants, calibrate, head_columns, head_outputs, watch
from infoprune_rt.pruning.moments import Moments


def recorded(
    tower: nn.Module, modules: dict[str, nn.Module], batches: list[dict[str, Tensor]]
) -> dict[str, list[Tensor]]:
    """Inputs and outputs of modules while transformers' own forward runs, rows packed, one entry per batch."""
    seen: dict[str, list[Tensor]] = {}

    def hook(name: str) -> Callable[..., None]:
        def record(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            seen.setdefault(f"{name} in", []).append(args[0].flatten(0, -2))
            seen.setdefault(f"{name} out", []).append(output.flatten(0, -2))

        return record

    handles = [module.register_forward_hook(hook(name)) for name, module in modules.items()]
    with torch.no_grad():
        for batch in batches:
            tower(**batch)
    for handle in handles:
        handle.remove()
    return seen


def assert_counted(moments: Moments, a: list[Tensor], b: list[Tensor]) -> None:
    direct = Moments(a[0].shape[1], b[0].shape[1], second=True)
    direct.add(torch.cat(a), torch.cat(b))
    assert moments.n == direct.n
    for name in ("mean_a", "mean_b", "cov_aa", "cov_ab", "var_b"):
        torch.testing.assert_close(getattr(moments, name), getattr(direct, name), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_moments_are_those_of_the_towers_own_forward(architecture: str) -> None:
    tower, adapter = random_tower(architecture)
    batches = [random_batch(architecture) for _ in range(6)]
    wants = [Wants("input", heads=(0, 2)), Wants(), Wants("hidden"), Wants()]
    moments = calibrate(tower, adapter, batches, wants)
    blocks, shape = adapter.blocks(tower), adapter.shape(tower.config)
    modules = {"out": blocks[0].out_proj, "ffn": blocks[0].ffn, "fc2": blocks[2].fc2, "ffn2": blocks[2].ffn}
    seen = recorded(tower, modules, batches)
    columns = head_columns((0, 2), shape.head_dim)
    pairs = [
        (moments[0].heads, [z[:, columns] for z in seen["out in"]], seen["out out"]),
        (moments[0].ffn, seen["ffn in"], seen["ffn out"]),
        (moments[2].ffn, seen["fc2 in"], seen["ffn2 out"]),
    ]
    for twin, a, b in pairs:
        assert twin is not None
        assert_counted(twin.held, a[1::4], b[1::4])
        fitted = [i for i in range(6) if i % 4 != 1]
        assert_counted(twin.fit, [a[i] for i in fitted], [b[i] for i in fitted])
    assert moments[1].ffn is None
    assert moments[0].ffn is not None
    assert moments[2].heads is None


@pytest.mark.parametrize(
    ("grids", "fitted"), [([(1, 4, 4), (1, 2, 2), (1, 6, 2)], 20), ([(1, 4, 6)], 18), ([(1, 2, 2)] * 9, 28)]
)
def test_a_lone_batch_is_split_by_images_and_a_lone_image_by_rows(
    grids: list[tuple[int, int, int]], fitted: int
) -> None:
    tower, adapter = random_tower("qwen2_vl")
    batch = random_batch("qwen2_vl", grids)
    twin = calibrate(tower, adapter, [batch], [Wants("input")] + [Wants()] * 3)[0].ffn
    assert twin is not None
    seen = recorded(tower, {"ffn": adapter.blocks(tower)[0].ffn}, [batch])
    assert_counted(twin.fit, [seen["ffn in"][0][:fitted]], [seen["ffn out"][0][:fitted]])
    assert_counted(twin.held, [seen["ffn in"][0][fitted:]], [seen["ffn out"][0][fitted:]])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_head_outputs_stop_the_block_early(architecture: str) -> None:
    tower, adapter = random_tower(architecture)
    block = adapter.blocks(tower)[0]
    with torch.no_grad():
        x, stream = adapter.embed(tower, random_batch(architecture))
        with watch(block) as seen:
            adapter.run_block(block, x, stream)
        hidden = seen.hidden
        with watch(block) as again:
            z = head_outputs(adapter, block, x, stream)
    torch.testing.assert_close(z, seen.z, rtol=0, atol=0)
    assert hidden.shape[1] == block.fc1.out_features
    assert not hasattr(again, "hidden")


def live_bytes() -> int:
    gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # isinstance wakes deprecated lazy attributes of other modules
        return sum(o.untyped_storage().nbytes() for o in gc.get_objects() if type(o) is Tensor)


@pytest.mark.parametrize("sequential", [False, True])
def test_memory_is_flat_in_the_number_of_batches(sequential: bool) -> None:
    tower, adapter = random_tower("qwen2_vl")
    held: list[int] = []

    def batches() -> Iterator[dict[str, Tensor]]:
        for _ in range(12):
            yield random_batch("qwen2_vl", [(1, 12, 12)])
            held.append(live_bytes())

    ffns = [FFNPlan("rrr", size=8), FFNPlan("neurons", size=20), FFNPlan(), FFNPlan()]
    apply_plan(
        tower,
        adapter,
        make_plan("qwen2_vl", [(0,), (1, 2), (0, 1, 2), (0, 1, 2)], ffns, refit=True, sequential=sequential),
        batches,
    )
    assert len(held) == 12
    assert max(held[6:]) <= max(held[:6])


@pytest.mark.parametrize("sequential", [False, True])
def test_batches_are_brought_to_the_towers_device(sequential: bool) -> None:
    asked: list[object] = []

    class Elsewhere(Tensor):
        def to(self, device: object) -> Tensor:  # type: ignore[override]
            asked.append(device)
            return self.as_subclass(Tensor)

    tower, adapter = random_tower("clip")
    batch = {name: tensor.as_subclass(Elsewhere) for name, tensor in random_batch("clip").items()}
    plan = make_plan("clip", [(0, 1, 2)] * 4, FFNPlan("rrr", size=8), sequential=sequential)
    apply_plan(tower, adapter, plan, lambda: [batch] * 2)
    assert asked == [torch.device("cpu")] * 2


def test_no_batches_are_told() -> None:
    tower, adapter = random_tower("clip")
    with pytest.raises(InfopruneError, match="at least one batch"):
        calibrate(tower, adapter, [], [Wants("input")] * 4)


def test_a_single_token_is_told() -> None:
    tower, adapter = random_tower("qwen2_vl")
    tower.config.spatial_merge_size = tower.spatial_merge_size = 1
    with pytest.raises(InfopruneError, match="more than one token"):
        calibrate(tower, adapter, [random_batch("qwen2_vl", [(1, 1, 1)])], [Wants("input")] * 4)


@pytest.mark.parametrize("sequential", [False, True])
def test_nan_in_a_batch_is_named(sequential: bool) -> None:
    tower, adapter = random_tower("clip")
    batches = [random_batch("clip") for _ in range(3)]
    batches[2]["pixel_values"][1, 0, 3, 3] = float("nan")
    plan = make_plan("clip", [(0, 1, 2)] * 4, FFNPlan("rrr", size=8), sequential=sequential)
    with pytest.raises(InfopruneError, match="calibration batch 2"):
        apply_plan(tower, adapter, plan, lambda: batches)


@pytest.mark.parametrize("sequential", [False, True])
def test_overflow_in_a_block_is_named(sequential: bool) -> None:
    tower, adapter = random_tower("clip")
    with torch.no_grad():
        adapter.blocks(tower)[1].fc2.weight.fill_(3e38)
    plan = make_plan("clip", [(0, 1, 2)] * 4, FFNPlan("rrr", size=8), sequential=sequential)
    with pytest.raises(InfopruneError, match="block 1, calibration batch 0, FFN output"):
        apply_plan(tower, adapter, plan, lambda: [random_batch("clip")])
