"""The gate gradient in parts and with checkpointed activations: the whole batch's, in less memory."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from compact_models import full_model, model_inputs
from tiny_vqa import NUM_BLOCKS, NUM_HEADS, TinyBatches, tiny_vlm
from torch import Tensor, nn

from infoprune_rt.errors import EmptyBatchError, InfopruneError
from infoprune_rt.pruning.activation_checkpoints import checkpointed_layers
from infoprune_rt.pruning.gate_gradient import collate_parts, gate_gradient
from infoprune_rt.pruning.head_gates import TowerHeads, gate_heads
from infoprune_rt.pruning.task_loss import frozen, task_loss
from infoprune_rt.towers import adapter_for

ITEMS = (3, 0, 7, 12, 5, 8, 1)


class RaggedBatches(TinyBatches):
    """Items with two labels, one (every third) or none (item 8); item 12 cannot be used."""

    def collate(self, indices: Sequence[int]) -> dict[str, Tensor]:
        usable = [i for i in indices if i != 12]
        if not usable:
            raise EmptyBatchError("every image of a batch is corrupt")
        features = super().collate(usable)
        for row, i in enumerate(usable):
            if i % 3 == 0:
                features["labels"][row, -2] = -100
            if i == 8:
                features["labels"][row] = -100
        return features


def gates(dtype: torch.dtype) -> Tensor:
    return torch.rand(NUM_BLOCKS, NUM_HEADS, dtype=dtype) + 0.2


def by_hand(model: nn.Module, heads: TowerHeads, zeta: Tensor, features: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    leaf = zeta.clone().requires_grad_()
    with gate_heads(heads.blocks, leaf, heads.head_dim):
        loss = task_loss(model, features)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


@pytest.mark.parametrize("micro_batch", [None, 1, 2, 3, 4, 7, 50])
def test_parts_give_the_whole_batchs_loss_and_gradient(micro_batch: int | None) -> None:
    dtype = torch.float64
    model, batches = tiny_vlm(dtype=dtype).eval(), RaggedBatches(dtype=dtype)
    heads = TowerHeads.of(model, adapter_for(model.config))
    zeta = gates(dtype)
    expected_loss, expected = by_hand(model, heads, zeta, batches.collate(ITEMS))
    parts = collate_parts(batches, ITEMS, micro_batch)
    # An item that cannot be used makes no part of its own.
    assert len(parts) == {None: 1, 1: 6, 2: 4, 3: 3, 4: 2, 7: 1, 50: 1}[micro_batch]
    loss, slope = gate_gradient(model, heads, zeta, parts)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(slope, expected, rtol=1e-5, atol=1e-9)
    assert not zeta.requires_grad


def test_one_part_is_the_whole_batch_to_the_bit() -> None:
    model, batches = tiny_vlm().eval(), RaggedBatches()
    heads = TowerHeads.of(model, adapter_for(model.config))
    zeta = gates(torch.float32)
    expected = by_hand(model, heads, zeta, batches.collate(ITEMS))
    found = gate_gradient(model, heads, zeta, collate_parts(batches, ITEMS))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_a_batch_without_anything_to_learn_is_told() -> None:
    model, batches = tiny_vlm().eval(), RaggedBatches()
    heads = TowerHeads.of(model, adapter_for(model.config))
    with pytest.raises(InfopruneError, match="every image of a batch is corrupt"):
        collate_parts(batches, [12, 12], 1)
    with pytest.raises(InfopruneError, match="no labelled token"):
        gate_gradient(model, heads, gates(torch.float32), collate_parts(batches, [8, 8], 1))


class Held:
    """Bytes of distinct storages that autograd keeps for backward, the model's own weights apart."""

    def __init__(self, model: nn.Module) -> None:
        self.known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self.tensors: list[Tensor] = []  # kept alive, so that no address is used twice

    def pack(self, tensor: Tensor) -> Tensor:
        self.tensors.append(tensor)
        return tensor

    @property
    def bytes(self) -> int:
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in self.tensors}
        return sum(size for place, size in storages.items() if place not in self.known)


def gradient_and_held(
    model: nn.Module, features: dict[str, Tensor], zeta: Tensor, checkpoint: bool
) -> tuple[Tensor, int]:
    heads, held = TowerHeads.of(model, adapter_for(model.config)), Held(model)  # type: ignore[arg-type]  # any config
    with frozen(model), checkpointed_layers(model, checkpoint):
        with torch.autograd.graph.saved_tensors_hooks(held.pack, lambda tensor: tensor):
            _, slope = gate_gradient(model, heads, zeta, [features])
        assert not any(module.training for module in model.modules())
    return slope, held.bytes


def test_checkpointed_activations_give_the_same_gradient_and_hold_less() -> None:
    model = tiny_vlm().train()
    for layer in model.model.language_model.layers:
        layer.self_attn.attention_dropout = 0.9  # it would change every gradient if it were ever on
    features, zeta = TinyBatches().collate([1, 3, 5, 7]), gates(torch.float32)
    plain, all_of_it = gradient_and_held(model, features, zeta, checkpoint=False)
    saving, less = gradient_and_held(model, features, zeta, checkpoint=True)
    torch.testing.assert_close(saving, plain, rtol=1e-5, atol=1e-7)
    assert plain.abs().min() > 0
    assert less < all_of_it / 3
    assert model.training


def test_checkpoints_work_where_hidden_states_are_asked_for() -> None:
    """LLaVA takes its features from an inner layer of the tower."""
    torch.manual_seed(0)
    model = full_model("clip")
    inputs = model_inputs("clip")
    inputs["labels"] = inputs["input_ids"].clone()
    heads = TowerHeads.of(model, adapter_for(model.config))
    zeta = torch.rand(len(heads.blocks), heads.num_heads) + 0.2
    plain, all_of_it = gradient_and_held(model, inputs, zeta, checkpoint=False)
    saving, less = gradient_and_held(model, inputs, zeta, checkpoint=True)
    torch.testing.assert_close(saving, plain, rtol=1e-5, atol=1e-7)
    assert plain[:-1].abs().min() > 0
    assert less < all_of_it


def test_layers_are_as_before_afterwards() -> None:
    model = tiny_vlm()
    other = model.model.visual.blocks[1]
    spread = other.forward  # as accelerate leaves it on a model spread over devices
    other.forward = spread
    with pytest.raises(InfopruneError), checkpointed_layers(model):
        task_loss(model, TinyBatches().collate([0]) | {"labels": torch.full((1, 9), -100)})
    assert vars(other)["forward"] is spread
    assert [m for m in model.modules() if "forward" in vars(m)] == [other]
    with checkpointed_layers(model, wanted=False):
        assert [m for m in model.modules() if "forward" in vars(m)] == [other]


def test_a_model_without_such_layers_is_told() -> None:
    with (
        pytest.raises(InfopruneError, match="Linear has no layers that transformers can checkpoint"),
        checkpointed_layers(nn.Linear(2, 2)),
    ):
        pass
