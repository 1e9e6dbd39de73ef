"""Moments counted chunk by chunk are those of all rows at once, and ridge regression does what it says."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from infoprune_rt.pruning.least_squares import ridge
from infoprune_rt.pruning.moments import Moments, Twin


def counted(a: Tensor, b: Tensor, chunks: int = 1) -> Moments:
    moments = Moments(a.shape[1], b.shape[1], second=True)
    for some_a, some_b in zip(a.tensor_split(chunks), b.tensor_split(chunks), strict=True):
        moments.add(some_a, some_b)
    return moments


def twin(a: Tensor, b: Tensor, cut: int) -> Twin:
    moments = Twin.empty(a.shape[1], b.shape[1])
    moments.add(a, b, cut)
    return moments


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.integers(1, 7), st.integers(1, 5), st.integers(1, 6), st.integers(0, 2**32))
def test_chunks_add_up(n: int, p: int, q: int, chunks: int, seed: int) -> None:
    torch.manual_seed(seed)
    a, b = torch.randn(n, p) * 3 + 5, torch.randn(n, q) - 2
    moments, wide_a, wide_b = counted(a, b, chunks), a.double(), b.double()
    centred_a, centred_b = wide_a - wide_a.mean(0), wide_b - wide_b.mean(0)
    assert moments.n == n
    torch.testing.assert_close(moments.mean_a, wide_a.mean(0))
    torch.testing.assert_close(moments.cov_aa, centred_a.T @ centred_a / n, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(moments.cov_ab, centred_a.T @ centred_b / n, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(moments.var_b, centred_b.square().sum() / n, rtol=1e-9, atol=1e-11)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 50), st.integers(1, 6), st.integers(1, 4), st.integers(0, 2**32))
def test_relative_error_is_the_rows_own(n: int, p: int, q: int, seed: int) -> None:
    torch.manual_seed(seed)
    a, b, weight, bias = torch.randn(n, p).double(), torch.randn(n, q).double(), torch.randn(q, p), torch.randn(q)
    residual = (b - a @ weight.double().T - bias.double()).square().sum()
    expected = residual / (b - b.mean(0)).square().sum()
    torch.testing.assert_close(counted(a, b).relative_error(weight, bias), float(expected), rtol=1e-8, atol=0)


def test_selected_columns_are_the_columns_moments() -> None:
    a, b = torch.randn(37, 9), torch.randn(37, 4)
    columns = torch.tensor([7, 0, 3])
    chosen, direct = counted(a, b).select(columns), counted(a[:, columns], b)
    for name in ("n", "mean_a", "mean_b", "cov_aa", "cov_ab", "var_b"):
        torch.testing.assert_close(getattr(chosen, name), getattr(direct, name))


def test_constant_targets_have_a_finite_error() -> None:
    moments = counted(torch.randn(20, 3), torch.full((20, 2), 4.0))
    assert moments.relative_error(torch.zeros(2, 3), torch.full((2,), 4.0)) < 2
    assert 1e3 < moments.relative_error(torch.zeros(2, 3), torch.zeros(2)) < float("inf")


def test_ridge_finds_an_exact_map() -> None:
    weight, bias = torch.randn(5, 11).double(), torch.randn(5).double()
    a = torch.randn(300, 11).double()
    found, offset = ridge(twin(a, a @ weight.T + bias, 200))
    torch.testing.assert_close(found, weight, rtol=0, atol=1e-4 * float(weight.abs().max()))
    torch.testing.assert_close(offset, bias, rtol=0, atol=1e-4)


def test_ridge_keeps_the_prior_where_no_data_are() -> None:
    """Fewer rows than columns: directions orthogonal to all rows are left as they were."""
    a, b, prior = torch.randn(8, 30).double(), torch.randn(8, 4).double(), torch.randn(4, 30).double()
    found, _ = ridge(twin(a, b, 6), prior)
    _, _, basis = torch.linalg.svd(a[:6] - a[:6].mean(0))
    unseen = basis[5:]
    torch.testing.assert_close(found @ unseen.T, prior @ unseen.T, rtol=0, atol=1e-6)


def test_ridge_with_the_true_map_as_prior_returns_it() -> None:
    a, prior, bias = torch.randn(9, 30).double(), torch.randn(4, 30).double(), torch.randn(4).double()
    found, offset = ridge(twin(a, a @ prior.T + bias, 6), prior)
    torch.testing.assert_close(found, prior, rtol=0, atol=1e-6)
    torch.testing.assert_close(offset, bias, rtol=0, atol=1e-6)


def test_ridge_is_free_of_units() -> None:
    a, b = torch.randn(40, 25).double(), torch.randn(40, 3).double()
    plain, _ = ridge(twin(a, b, 30))
    scaled, _ = ridge(twin(a * 1e4, b * 1e-3, 30))
    torch.testing.assert_close(scaled * 1e7, plain, rtol=1e-6, atol=1e-9)


def test_ridge_on_constant_or_absent_columns_is_the_mean() -> None:
    b = torch.randn(20, 3).double()
    _, bias = ridge(twin(torch.ones(20, 2), b, 15), torch.zeros(3, 2))
    torch.testing.assert_close(bias, b[:15].mean(0))
    weight, bias = ridge(twin(torch.ones(20, 0), b, 15), torch.zeros(3, 0))
    assert weight.shape == (3, 0)
    torch.testing.assert_close(bias, b[:15].mean(0))
