"""The laws of method.md section 1."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from infoprune_rt.pruning.information import (
    erank,
    erank_change,
    gated_gram,
    ks_empirical,
    ks_spectral,
    singular_values_from_gram,
)

SEEDS = st.integers(0, 2**31 - 1)


def gram_of_rank(seed: int, n: int, rank: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    left = torch.randn(3 * n, rank, generator=generator, dtype=torch.float64)
    z = left @ torch.randn(rank, n, generator=generator, dtype=torch.float64)
    return z.mT @ z


def erank_loss(gram: Tensor, zeta: Tensor, head_dim: int) -> Tensor:
    """The change of eRank under gates, as a function of the gates."""
    gated = singular_values_from_gram(gated_gram(gram, zeta, head_dim))
    return erank_change(singular_values_from_gram(gram), gated)


def gates(seed: int, heads: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (0.1 + 0.9 * torch.rand(heads, generator=generator, dtype=torch.float64)).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_erank_known_values(dtype: torch.dtype) -> None:
    values = torch.tensor([[10, 0.01, 0.01], [10, 10, 10], [5, 0, 0], [0, 0, 0]], dtype=dtype)
    from_gram = erank(singular_values_from_gram(torch.diag_embed(values.square())))
    # By hand: p = (.998004, .000998, .000998), entropy .015787.
    expected = torch.tensor([1.015912, 3.0, 1.0, 0.0], dtype=dtype)
    torch.testing.assert_close(from_gram, expected, atol=2e-5, rtol=0)
    torch.testing.assert_close(erank(values), expected, atol=2e-6, rtol=0)


@given(seed=SEEDS, n=st.integers(1, 13), data=st.data())
@settings(max_examples=60, deadline=None)
def test_erank_lies_between_one_and_the_rank(seed: int, n: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(1, n))
    values = singular_values_from_gram(gram_of_rank(seed, n, rank))
    assert int((values > 0).sum()) <= rank
    assert 1 - 1e-12 <= float(erank(values)) <= rank + 1e-9


def test_gated_gram_is_the_gram_of_the_gated_outputs() -> None:
    z = torch.randn(17, 12, dtype=torch.float64)
    zeta = torch.rand(4, dtype=torch.float64)
    z_s = z * zeta.repeat_interleave(3)
    torch.testing.assert_close(gated_gram(z.mT @ z, zeta, 3), z_s.mT @ z_s)
    by_svd = torch.linalg.svdvals(z_s)
    torch.testing.assert_close(singular_values_from_gram(gated_gram(z.mT @ z, zeta, 3)), by_svd)


@given(seed=SEEDS, heads=st.integers(2, 5), head_dim=st.integers(1, 4), lost=st.integers(0, 3))
@settings(max_examples=40, deadline=None)
def test_euler_identity(seed: int, heads: int, head_dim: int, lost: int) -> None:
    """eRank and the spectral KS distance do not see a common factor on all gates."""
    n = heads * head_dim
    gram = gram_of_rank(seed, n, max(1, n - lost))
    dense = singular_values_from_gram(gram)
    for loss in ("erank", "ks"):
        zeta = gates(seed + 1, heads)
        gated = singular_values_from_gram(gated_gram(gram, zeta, head_dim))
        value = erank_loss(gram, zeta, head_dim) if loss == "erank" else ks_spectral(dense, gated)
        (slope,) = torch.autograd.grad(value, zeta)
        assert abs(float((slope * zeta.detach()).sum())) < 1e-10 * (1 + float(slope.abs().sum()))


def test_the_empirical_distance_does_see_a_common_factor() -> None:
    gram = gram_of_rank(3, 6, 6)
    dense = singular_values_from_gram(gram)
    zeta = gates(4, 3)
    distance = ks_empirical(dense, singular_values_from_gram(gated_gram(gram, zeta, 2)), 0.2)
    (slope,) = torch.autograd.grad(distance, zeta)
    assert abs(float((slope * zeta.detach()).sum())) > 1e-3


@pytest.mark.parametrize("heads", [2, 5])
def test_gradcheck_with_repeated_singular_values(heads: int) -> None:
    """Orthonormal outputs and equal gates: all values coincide; doubled outputs: half of them are zero."""
    n = 3 * heads
    orthonormal = torch.eye(n, dtype=torch.float64)
    half = torch.randn(4 * n, n, dtype=torch.float64)
    doubled = torch.cat([half, half], dim=1)
    cases = [(orthonormal, torch.full((heads,), 0.7, dtype=torch.float64))]
    cases.append((doubled.mT @ doubled / n, torch.full((2 * heads,), 0.7, dtype=torch.float64)))
    cases.append((orthonormal, torch.tensor([0.7, 0.4] + [0.4] * (heads - 2), dtype=torch.float64)))
    for gram, zeta in cases:
        zeta.requires_grad_()
        assert torch.autograd.gradcheck(lambda z, gram=gram: erank_loss(gram, z, 3), (zeta,))


def test_gradcheck_of_both_distances() -> None:
    gram = gram_of_rank(11, 6, 6)
    dense = singular_values_from_gram(gram)
    zeta = torch.tensor([0.9, 0.5, 0.2], dtype=torch.float64, requires_grad=True)

    def spectral(z: Tensor) -> Tensor:
        return ks_spectral(dense, singular_values_from_gram(gated_gram(gram, z, 2)))

    assert torch.autograd.gradcheck(spectral, (zeta,))
    # The empirical distance is evaluated at points that move with zeta but carry no gradient: check one fixed set.
    gated = singular_values_from_gram(gated_gram(gram, zeta, 2))
    (slope,) = torch.autograd.grad(ks_empirical(dense, gated, 0.3), zeta)
    assert slope.isfinite().all()
    assert slope.abs().max() > 0


@given(seed=SEEDS, n=st.integers(1, 9), tau=st.floats(1e-3, 10))
@settings(max_examples=60, deadline=None)
def test_ks_is_zero_for_equal_spectra_and_at_most_one(seed: int, n: int, tau: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    first, second = torch.rand(2, n, generator=generator, dtype=torch.float64).pow(4).sort(-1, descending=True).values
    for distance in (ks_spectral(first, second), ks_empirical(first, second, tau)):
        assert 0 <= float(distance) <= 1
    assert float(ks_spectral(first, first)) == 0
    assert float(ks_spectral(first, 0.37 * first)) == 0
    assert float(ks_empirical(first, first, tau)) == 0


def test_ks_known_values() -> None:
    dense = torch.tensor([2.0, 0.0], dtype=torch.float64)
    gated = torch.tensor([1.0, 1.0], dtype=torch.float64)
    assert float(ks_spectral(dense, gated)) == pytest.approx(0.5)
    # Steps at 0 and 2 against a double step at 1: half of the mass apart between 0 and 1, as between 1 and 2; a
    # sharp sigmoid is at half height on its own step, so at 1 the gated CDF reads 1/2 too and the gap shows at 0.
    assert float(ks_empirical(dense, gated, 1e-3)) == pytest.approx(0.25)
    # All mass of one below all of the other: at the topmost lower value, three quarters of it lie at or below.
    lower, upper = torch.tensor([[2.0, 1.0], [9.0, 8.0]], dtype=torch.float64)
    assert float(ks_empirical(lower, upper, 1e-3)) == pytest.approx(0.75)


def test_equal_gates_do_not_pull_on_ks() -> None:
    """At uniform gates the spectral distance has its minimum; rounding noise must not choose a gradient."""
    gram = gram_of_rank(5, 12, 12)
    zeta = torch.full((4,), 0.953, dtype=torch.float64, requires_grad=True)
    distance = ks_spectral(singular_values_from_gram(gram), singular_values_from_gram(gated_gram(gram, zeta, 3)))
    (slope,) = torch.autograd.grad(distance, zeta)
    assert float(distance.detach()) == 0
    assert not slope.any()


def test_dead_and_duplicate_heads_cost_less_than_unique_ones() -> None:
    generator = torch.Generator().manual_seed(2)
    a, b, c = torch.randn(3, 200, 4, generator=generator, dtype=torch.float64)
    z = torch.cat([a, a, b, c, torch.zeros_like(a)], dim=1)
    gram = z.mT @ z
    without = 1 - torch.eye(5, dtype=torch.float64)
    change = erank_loss(gram.expand(5, -1, -1), without, 4)
    duplicate, unique, dead = change[:2], change[2:4], change[4]
    assert float(dead) == pytest.approx(0, abs=1e-12)
    assert (duplicate.abs() < unique.abs() / 3).all()
    assert (unique < -0.2).all()
