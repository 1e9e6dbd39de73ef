from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_vqa import TinyBatches, tiny_vlm
from torch import Tensor, nn

from infoprune_rt.errors import InfopruneError
from infoprune_rt.pruning.task_loss import batch_indices, frozen, task_loss


class WithoutLogitsToKeep(nn.Module):
    """A VLM whose forward knows no ``logits_to_keep``."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, use_cache: bool, **features: Tensor) -> object:
        return self.model(input_ids=input_ids, use_cache=use_cache, **features)


@torch.no_grad()
def test_task_loss_is_the_models_own() -> None:
    model = tiny_vlm(dtype=torch.float64).eval()
    features = TinyBatches(dtype=torch.float64).collate([0, 1, 6, 12])
    features["labels"][1, -2] = -100  # rows need not have their labels in the same places
    own = model(**features).loss
    torch.testing.assert_close(task_loss(model, features), own.double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(task_loss(WithoutLogitsToKeep(model), features), own.double(), rtol=1e-6, atol=0)


def test_a_batch_without_labels_is_told() -> None:
    features = TinyBatches().collate([0])
    features["labels"].fill_(-100)
    with pytest.raises(InfopruneError, match="no labelled token"):
        task_loss(tiny_vlm(), features)


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 40), st.integers(0, 99), st.integers(0, 50), st.integers(0, 50), st.integers(0, 2**32))
def test_batches_are_one_stream_of_shuffled_passes(n: int, start: int, first: int, second: int, seed: int) -> None:
    whole = batch_indices(n, start, first + second, seed)
    assert whole == batch_indices(n, start, first, seed) + batch_indices(n, start + first, second, seed)
    assert sorted(batch_indices(n, 3 * n, n, seed)) == list(range(n))


def test_passes_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(batch_indices(30, p * 30, 30, seed)) for p in range(3) for seed in range(3)}
    assert len(orders) == 9
    with pytest.raises(InfopruneError, match="no items"):
        batch_indices(0, 0, 1, 0)


def test_frozen_restores_what_it_found() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout(), nn.Linear(2, 2))
    model[0].requires_grad_(False)
    model[1].eval()
    with frozen(model):
        assert not any(p.requires_grad for p in model.parameters())
        assert not any(m.training for m in model.modules())
    with pytest.raises(KeyError), frozen(model):
        raise KeyError
    assert [p.requires_grad for p in model.parameters()] == [False, False, True, True]
    assert [m.training for m in model.modules()] == [True, True, False, True]
