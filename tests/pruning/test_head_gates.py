from __future__ import annotations

import pytest
import torch
from tiny_vqa import HEAD_DIM, NUM_BLOCKS, NUM_HEADS, TinyBatches, tiny_clip, tiny_vlm
from torch import Tensor, nn

from infoprune_rt.errors import InfopruneError
from infoprune_rt.pruning.head_gates import HeadGates, TowerHeads, gate_heads, mask_heads
from infoprune_rt.pruning.task_loss import task_loss
from infoprune_rt.towers import adapter_for


def tower_and_inputs(name: str) -> tuple[nn.Module, dict[str, Tensor], TowerHeads]:
    if name == "clip":
        tower: nn.Module = tiny_clip()
        return tower, {"pixel_values": torch.randn(3, 3, 12, 12)}, TowerHeads.of(tower, adapter_for(tower.config))
    model = tiny_vlm().eval()
    adapter = adapter_for(model.config)
    inputs = adapter.tower_inputs(TinyBatches().collate([4, 1, 7]))
    return adapter.tower_of(model), inputs, TowerHeads.of(model, adapter)


@pytest.mark.parametrize("name", ["qwen2_vl", "clip"])
@torch.no_grad()
def test_open_gates_change_nothing_and_leave_no_hooks(name: str) -> None:
    tower, inputs, heads = tower_and_inputs(name)
    shape = (len(heads.blocks), heads.num_heads)
    before = tower(**inputs).last_hidden_state
    with mask_heads(heads.blocks, torch.ones(shape), heads.head_dim):
        assert torch.equal(tower(**inputs).last_hidden_state, before)
    with mask_heads(heads.blocks, torch.zeros(shape), heads.head_dim):
        assert not torch.equal(tower(**inputs).last_hidden_state, before)
    with pytest.raises(KeyError), mask_heads(heads.blocks, torch.zeros(shape), heads.head_dim):
        raise KeyError
    assert torch.equal(tower(**inputs).last_hidden_state, before)
    assert not any(block.out_proj._forward_pre_hooks for block in heads.blocks)


@pytest.mark.parametrize("name", ["qwen2_vl", "clip"])
@torch.no_grad()
def test_masked_heads_are_those_whose_projection_columns_are_zero(name: str) -> None:
    tower, inputs, heads = tower_and_inputs(name)
    masks = torch.rand(len(heads.blocks), heads.num_heads) < 0.6
    masks[1] = False  # a block without heads keeps only its bias
    with mask_heads(heads.blocks, masks, heads.head_dim):
        masked = tower(**inputs).last_hidden_state
    for block, mask in zip(heads.blocks, masks, strict=True):
        block.out_proj.weight *= mask.repeat_interleave(heads.head_dim)
    assert torch.equal(masked, tower(**inputs).last_hidden_state)


def test_gate_gradient_is_the_finite_difference() -> None:
    model = tiny_vlm(dtype=torch.float64).eval().requires_grad_(False)
    heads = TowerHeads.of(model, adapter_for(model.config))
    features = TinyBatches(dtype=torch.float64).collate([2, 3, 5])

    def loss(zeta: Tensor) -> Tensor:
        with gate_heads(heads.blocks, zeta, HEAD_DIM):
            return task_loss(model, features)

    zeta = torch.rand(NUM_BLOCKS, NUM_HEADS, dtype=torch.float64, requires_grad=True)
    # transformers rounds norms and rotary angles to float32 inside, hence the wide step and the tolerance.
    assert torch.autograd.gradcheck(loss, (zeta,), eps=1e-2, atol=2e-3, rtol=1e-2)
    (slope,) = torch.autograd.grad(loss(zeta), zeta)
    assert slope.abs().max() > 0.05


def test_gates_given_as_a_function_follow_the_logits() -> None:
    tower, inputs, heads = tower_and_inputs("qwen2_vl")
    gates = HeadGates(NUM_BLOCKS, NUM_HEADS, init_logit=40.0)
    with torch.no_grad(), gate_heads(heads.blocks, gates.zeta, heads.head_dim):
        open_output = tower(**inputs).last_hidden_state
        gates.logits.fill_(-200.0)
        closed_output = tower(**inputs).last_hidden_state
    with torch.no_grad():
        assert torch.equal(open_output, tower(**inputs).last_hidden_state)
        with mask_heads(heads.blocks, torch.zeros(NUM_BLOCKS, NUM_HEADS), heads.head_dim):
            assert torch.equal(closed_output, tower(**inputs).last_hidden_state)


def test_hard_concrete_gates_close_exactly_and_cost_their_expected_l0() -> None:
    gates = HeadGates(4, 5, kind="hard_concrete")
    with torch.no_grad():
        gates.logits.copy_(torch.linspace(-6, 6, 20).view(4, 5))
    zeta = gates.zeta()
    assert float(zeta[0, 0]) == 0
    assert float(zeta[-1, -1]) == 1
    draws = 20_000
    noise = torch.rand(draws, 4, 5, generator=torch.Generator().manual_seed(1))
    open_share = (gates.zeta(noise) > 0).double().mean().item()
    # 20 independent gates: the standard error of the share is at most 1 / (2 sqrt(20 * draws)); six of them allowed.
    assert open_share == pytest.approx(gates.cost().item(), abs=3 / (20 * draws) ** 0.5)


@pytest.mark.parametrize("kind", ["sigmoid", "hard_concrete"])
def test_scores_order_the_heads_and_decide_as_zeta_does(kind: str) -> None:
    gates = HeadGates(1, 40, kind=kind)  # type: ignore[arg-type]  # parametrised with valid names
    with torch.no_grad():
        gates.logits.copy_(torch.linspace(-9, 9, 40))
    scores = gates.scores().flatten()
    assert (scores.diff() > 0).all()
    for z in (0.01, 0.5, 0.99):
        assert torch.equal(scores >= z, gates.zeta().flatten() >= z)


def test_noise_at_the_ends_of_its_range_is_harmless() -> None:
    gates = HeadGates(1, 2, kind="hard_concrete")
    zeta = gates.zeta(torch.tensor([[0.0, 1.0]]))
    zeta.sum().backward()
    assert zeta.isfinite().all()
    assert gates.logits.grad is not None
    assert gates.logits.grad.isfinite().all()


def test_gates_of_the_wrong_shape_are_told() -> None:
    _, _, heads = tower_and_inputs("qwen2_vl")
    for shape in ((NUM_BLOCKS + 1, NUM_HEADS), (NUM_BLOCKS, NUM_HEADS + 1), (NUM_HEADS,)):
        with pytest.raises(InfopruneError, match="do not fit a tower of 3 blocks"):
            mask_heads(heads.blocks, torch.ones(shape), heads.head_dim).__enter__()
    with pytest.raises(InfopruneError, match="known are sigmoid, hard_concrete"):
        HeadGates(1, 1, kind="tanh")  # type: ignore[arg-type]  # the mistake under test
