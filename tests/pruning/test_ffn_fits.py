"""Laws of the FFN fits (method.md section 2), on small FFNs with planted truths."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from infoprune_rt.errors import InfopruneError
from infoprune_rt.plan import FFNMode, FFNPlan
from infoprune_rt.pruning import ffn_neurons, ffn_rrr, ffn_taylor
from infoprune_rt.pruning.ffn_forms import FFNFit, FFNWeights, activate, corrected, round_size, slope
from infoprune_rt.pruning.ffn_taylor import truncation_rank
from infoprune_rt.pruning.moments import Twin

D, M, N, CUT = 23, 75, 900, 700
ACTIVATIONS = ("quick_gelu", "gelu", "gelu_pytorch_tanh", "silu")


def random_ffn(activation: str = "quick_gelu") -> FFNWeights:
    scale = D**-0.5
    return FFNWeights(
        torch.randn(M, D) * scale, torch.randn(M) * 0.3, torch.randn(D, M) * scale, torch.randn(D) * 0.1, activation
    )


def linear_ffn(rank: int) -> FFNWeights:
    """Exactly linear: biases so large that quick-GELU passes every input unchanged."""
    first = torch.randn(M, rank) @ torch.randn(rank, D) / D
    return FFNWeights(first, torch.full((M,), 60.0), torch.randn(D, M) / M, torch.randn(D), "quick_gelu")


def output(weights: FFNWeights, x: Tensor) -> Tensor:
    return F.linear(weights.hidden(x), weights.fc2_weight, weights.fc2_bias)


def inputs() -> Tensor:
    """Correlated columns, off-centre."""
    return torch.randn(N, D) @ torch.randn(D, D) / D**0.5 + torch.randn(D)


def linear_moments(weights: FFNWeights, x: Tensor) -> Twin:
    moments = Twin.empty(D, D)
    moments.add(x, output(weights, x), CUT)
    return moments


def hidden_moments(weights: FFNWeights, x: Tensor) -> Twin:
    moments = Twin.empty(weights.hidden_width, D)
    moments.add(weights.hidden(x), output(weights, x), CUT)
    return moments


def relative_error(fit: FFNFit, weights: FFNWeights, x: Tensor) -> float:
    y = output(weights, x).double()
    return float((fit(x, weights.activation) - y).square().sum() / (y - y.mean(0)).square().sum())


def linear_map(fit: FFNFit) -> Tensor:
    return fit.tensors["map"] if fit.kind == "merged" else fit.tensors["up"] @ fit.tensors["down"]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slope_is_the_derivative(name: str) -> None:
    x, step = torch.linspace(-6, 6, 101).double(), 1e-6
    difference = (activate(name, x + step) - activate(name, x - step)) / (2 * step)
    torch.testing.assert_close(slope(name, x), difference, rtol=0, atol=1e-8)


def test_unknown_activation_is_told() -> None:
    with pytest.raises(InfopruneError, match=r"relu.*not supported"):
        activate("relu", torch.zeros(1))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200), st.integers(1, 300))
def test_sizes_round_up_within_the_limit(size: int, limit: int) -> None:
    rounded = round_size(size, limit)
    assert rounded == limit or (rounded % 16 == 0 and size <= rounded < size + 16 and rounded < limit)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=30), st.floats(1e-6, 0.99))
def test_truncation_rank_is_the_smallest_that_meets_epsilon(values: list[float], epsilon: float) -> None:
    energy = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    k = truncation_rank(energy, epsilon)
    slack = 1e-12 * energy.sum()
    assert energy[k:].sum() <= epsilon * energy.sum() + slack
    assert k == 1 or energy[k - 1 :].sum() >= epsilon * energy.sum() - slack


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_taylor_with_vanishing_epsilon_is_the_jacobian(activation: str) -> None:
    weights, x = random_ffn(activation), inputs()
    fit = ffn_taylor.fit(weights, linear_moments(weights, x), FFNPlan("taylor", epsilon=1e-15))
    jacobian = torch.autograd.functional.jacobian(lambda at: output(weights, at), x[:CUT].mean(0))
    assert (fit.kind, fit.size) == ("merged", D)
    torch.testing.assert_close(linear_map(fit), jacobian)


@pytest.mark.parametrize("rank", [1, 8, 15, 22])
def test_taylor_truncation_loses_the_discarded_energy(rank: int) -> None:
    weights, x = random_ffn(), inputs()
    moments = linear_moments(weights, x)
    full = ffn_taylor.fit(weights, moments, FFNPlan("taylor", size=D))
    fit = ffn_taylor.fit(weights, moments, FFNPlan("taylor", size=rank))
    assert fit.spectrum is not None
    assert fit.size == rank
    lost = (linear_map(full) - linear_map(fit)).double().square().sum()
    torch.testing.assert_close(lost, fit.spectrum[rank:].square().sum(), rtol=1e-4, atol=1e-8)


def test_taylor_biases_agree_where_they_should() -> None:
    weights, x = random_ffn(), inputs()
    moments, x0 = linear_moments(weights, x), x[:CUT].mean(0)
    at_point = ffn_taylor.fit(weights, moments, FFNPlan("taylor", size=4, bias="taylor"))
    torch.testing.assert_close(at_point(x0, "quick_gelu"), output(weights, x0))
    on_average = ffn_taylor.fit(weights, moments, FFNPlan("taylor", size=4, bias="mean"))
    residual = on_average(x[:CUT], "quick_gelu") - output(weights, x[:CUT])
    torch.testing.assert_close(residual.mean(0), torch.zeros(D), rtol=0, atol=1e-5)
    assert relative_error(on_average, weights, x[:CUT]) < relative_error(at_point, weights, x[:CUT])


def test_taylor_needs_no_second_moments_to_fit() -> None:
    weights, x = random_ffn(), inputs()
    means = Twin.empty(D, D, means_only=True)
    means.add(x, output(weights, x), CUT)
    plan = FFNPlan("taylor", epsilon=0.05)
    lean, full = ffn_taylor.fit(weights, means, plan), ffn_taylor.fit(weights, linear_moments(weights, x), plan)
    assert lean.held_out_error == full.held_out_error
    torch.testing.assert_close(linear_map(lean), linear_map(full))


@pytest.mark.parametrize("rank", [1, 6, 17])
@pytest.mark.parametrize("mode", [ffn_taylor, ffn_rrr])
def test_linear_ffn_gets_its_exact_rank(mode: ModuleType, rank: int) -> None:
    weights = linear_ffn(rank)
    x = inputs()
    fit = mode.fit(weights, linear_moments(weights, x), FFNPlan("rrr", epsilon=1e-6))
    assert fit.spectrum is not None
    assert fit.held_out_error is not None
    share = fit.spectrum.square() / fit.spectrum.square().sum() if mode is ffn_taylor else fit.spectrum
    assert int((share > 1e-9).sum()) == rank
    assert fit.size == round_size(rank, D)
    assert fit.held_out_error < 1e-6
    assert relative_error(fit, weights, x[CUT:]) < 1e-6


@pytest.mark.parametrize("rank", [1, 5, 11, 18, D])
def test_rrr_is_never_worse_than_taylor_on_its_data(rank: int) -> None:
    weights, x = random_ffn(), inputs()
    moments = linear_moments(weights, x)
    taylor = ffn_taylor.fit(weights, moments, FFNPlan("taylor", size=rank))
    rrr = ffn_rrr.fit(weights, moments, FFNPlan("rrr", size=rank))
    assert relative_error(rrr, weights, x[:CUT]) < relative_error(taylor, weights, x[:CUT])


def test_rrr_epsilon_is_the_output_error() -> None:
    weights, x = random_ffn(), inputs()
    moments = linear_moments(weights, x)
    full = ffn_rrr.fit(weights, moments, FFNPlan("rrr", size=D))
    assert full.spectrum is not None
    curve = 1 - full.spectrum.cumsum(0)
    for rank in (3, 12):
        fit = ffn_rrr.fit(weights, moments, FFNPlan("rrr", size=rank))
        assert relative_error(fit, weights, x[:CUT]) == pytest.approx(float(curve[rank - 1]), rel=1e-4)
    epsilon = float(curve[9]) * 1.0001
    fit = ffn_rrr.fit(weights, moments, FFNPlan("rrr", epsilon=epsilon))
    assert fit.size == 16
    assert relative_error(fit, weights, x[:CUT]) <= epsilon


def test_rrr_that_cannot_meet_epsilon_stays_dense() -> None:
    weights, x = random_ffn(), inputs()
    fit = ffn_rrr.fit(weights, linear_moments(weights, x), FFNPlan("rrr", epsilon=1e-6))
    assert fit.kind == "dense"
    assert fit.size is None
    assert fit.note is not None
    assert "full rank" in fit.note
    assert fit.tensors["fc1_weight"] is weights.fc1_weight


def test_rrr_on_fewer_tokens_than_columns_still_predicts() -> None:
    """As with one photograph in a 1280-wide tower: the ridge must keep held-out rows from exploding."""
    weights, x = random_ffn(), inputs()
    moments = Twin.empty(D, D)
    moments.add(x[: D + 8], output(weights, x[: D + 8]), D - 3)
    fit = ffn_rrr.fit(weights, moments, FFNPlan("rrr", size=8))
    assert relative_error(fit, weights, x) < 1.1


@pytest.mark.parametrize("mode", ["taylor", "rrr", "neurons"])
def test_reported_held_out_error_is_the_rows_own(mode: str) -> None:
    weights, x = random_ffn(), inputs()
    fitter = {"taylor": ffn_taylor, "rrr": ffn_rrr, "neurons": ffn_neurons}[mode]
    moments = hidden_moments(weights, x) if mode == "neurons" else linear_moments(weights, x)
    fit = fitter.fit(weights, moments, FFNPlan(mode, size=9))  # type: ignore[arg-type]  # mode is one of the literals
    assert fit.held_out_error == pytest.approx(relative_error(fit, weights, x[CUT:]), rel=1e-3)


def refit_error(gram: Tensor, cross: Tensor, kept: list[int]) -> Tensor:
    """The least-squares objective at its minimum over the kept regressors, without its constant."""
    some = cross[kept]
    return -(some * torch.linalg.solve(gram[kept][:, kept], some)).sum() if kept else torch.zeros(())


def test_elimination_is_greedy_and_its_costs_exact() -> None:
    """Against brute force over 70 removals, so that panels (64 at a time) are crossed."""
    m = 75
    # Correlated, yet so conditioned that brute force is exact enough to judge by.
    a = torch.randn(200, m).double() @ (torch.randn(m, m) / m**0.5 + 2 * torch.eye(m)).double()
    gram, cross = a.T @ a / 200, torch.randn(m, 6).double()
    inverse = torch.linalg.inv(gram)
    removed, costs = ffn_neurons.eliminate(inverse, inverse @ cross, 70)
    kept = list(range(m))
    for step, (j, cost) in enumerate(zip(removed.tolist(), costs.tolist(), strict=True)):
        before = refit_error(gram, cross, kept)
        if step % 9 == 0:
            raised = [float(refit_error(gram, cross, [i for i in kept if i != k]) - before) for k in kept]
            assert kept[min(range(len(kept)), key=raised.__getitem__)] == j
        kept.remove(j)
        assert cost == pytest.approx(float(refit_error(gram, cross, kept) - before), rel=1e-5, abs=1e-9)


def test_elimination_stops_within_its_budget() -> None:
    a = torch.randn(90, 30).double()
    inverse, cross = torch.linalg.inv(a.T @ a / 90), torch.randn(30, 4).double()
    _, costs = ffn_neurons.eliminate(inverse, inverse @ cross, 30)
    budget = float(costs[:11].sum()) * 1.000001
    removed, _ = ffn_neurons.eliminate(inverse, inverse @ cross, 30, budget)
    assert len(removed) == 11
    assert len(ffn_neurons.eliminate(inverse, inverse @ cross, 0)[0]) == 0


def planted_neurons() -> tuple[FFNWeights, list[set[int]], set[int]]:
    """20 distinct neurons, 10 duplicates of some of them, 7 that never fire; shuffled."""
    first, bias = torch.randn(20, D) / D**0.5, torch.randn(20) * 0.3
    twins = torch.randint(0, 20, (10,))
    origin = torch.cat([torch.arange(20), twins, torch.full((7,), -1)])
    first = torch.cat([first, first[twins], torch.zeros(7, D)])
    bias = torch.cat([bias, bias[twins], torch.full((7,), -80.0)])
    order = torch.randperm(37)
    origin = origin[order]
    weights = FFNWeights(first[order], bias[order], torch.randn(D, 37), torch.randn(D), "quick_gelu")
    groups = [set((origin == i).nonzero().flatten().tolist()) for i in range(20)]
    return weights, groups, set((origin == -1).nonzero().flatten().tolist())


def kept_neurons(fit: FFNFit, weights: FFNWeights) -> list[int]:
    matches = (fit.tensors["fc1_weight"][:, None] == weights.fc1_weight[None]).all(2)
    return [int(row.nonzero()[0]) for row in matches]


def test_duplicate_and_dead_neurons_are_found() -> None:
    weights, groups, dead = planted_neurons()
    x = inputs()
    fit = ffn_neurons.fit(weights, hidden_moments(weights, x), FFNPlan("neurons", size=20))
    kept = kept_neurons(fit, weights)
    assert not dead & set(kept)
    owners = [next(i for i, group in enumerate(groups) if neuron in group) for neuron in kept]
    assert sorted(owners) == list(range(20))
    assert relative_error(fit, weights, x[CUT:]) < 1e-6


def test_neurons_epsilon_finds_the_planted_size_and_bounds_the_error() -> None:
    weights, _, _ = planted_neurons()
    x = inputs()
    moments = hidden_moments(weights, x)
    exact = ffn_neurons.fit(weights, moments, FFNPlan("neurons", epsilon=1e-3))
    assert exact.kind == "neurons"
    assert exact.size in (16, 32)
    assert relative_error(exact, weights, x[:CUT]) <= 1e-3
    loose = ffn_neurons.fit(weights, moments, FFNPlan("neurons", epsilon=0.9))
    assert loose.size == 16


def test_neurons_refit_beats_slicing() -> None:
    weights, x = random_ffn(), inputs()
    fit = ffn_neurons.fit(weights, hidden_moments(weights, x), FFNPlan("neurons", size=30))
    kept = kept_neurons(fit, weights)
    sliced = dict(fit.tensors) | {"fc2_weight": weights.fc2_weight[:, kept], "fc2_bias": weights.fc2_bias}
    cut = FFNFit("neurons", sliced)
    assert relative_error(fit, weights, x[CUT:]) < 0.5 * relative_error(cut, weights, x[CUT:])


def test_neurons_that_cannot_meet_epsilon_stay_dense() -> None:
    """A target that is not the FFN's own output, as in sequential fitting."""
    weights, x = random_ffn(), inputs()
    moments = Twin.empty(M, D)
    moments.add(weights.hidden(x), torch.randn(N, D), CUT)
    fit = ffn_neurons.fit(weights, moments, FFNPlan("neurons", epsilon=0.05))
    assert fit.kind == "dense"
    assert fit.note is not None
    assert "epsilon" in fit.note


def activated(mode: ModuleType, plan: FFNPlan, weights: FFNWeights, x: Tensor) -> FFNFit:
    """A fit with an activation between its factors, corrected by a second pass."""
    first = mode.fit(weights, linear_moments(weights, x), plan)
    again = Twin.empty(first.size, D, means_only=True)
    again.add(first.hidden(x, weights.activation), output(weights, x), CUT)
    return corrected(weights, plan, first, again)


@pytest.mark.parametrize("between", ACTIVATIONS)
@pytest.mark.parametrize(("mode", "name"), [(ffn_taylor, "taylor"), (ffn_rrr, "rrr")])
def test_factors_with_an_activation_between_are_the_linear_maps(mode: ModuleType, name: FFNMode, between: str) -> None:
    weights, x = random_ffn(), inputs()
    linear = mode.fit(weights, linear_moments(weights, x), FFNPlan(name, size=9))
    fit = activated(mode, FFNPlan(name, size=9, between=between), weights, x)
    assert (fit.kind, fit.size, fit.activation) == ("neurons", 9, between)
    down, up = fit.tensors["fc1_weight"], fit.tensors["fc2_weight"]
    torch.testing.assert_close(up @ down, linear_map(linear), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(down @ down.T, torch.eye(9), atol=1e-5, rtol=0)
    assert (down @ x[:CUT].mean(0) >= 0).all()
    phi = activate(between, x @ down.T) @ up.T + fit.tensors["fc2_bias"]
    torch.testing.assert_close(fit(x, weights.activation), phi)
    torch.testing.assert_close(phi[:CUT].mean(0), output(weights, x[:CUT]).mean(0), atol=1e-5, rtol=0)
    assert fit.held_out_error == pytest.approx(relative_error(fit, weights, x[CUT:]), rel=1e-3)


def test_the_expansions_own_constant_stays_with_an_activation_between() -> None:
    weights, x = random_ffn(), inputs()
    x0 = x[:CUT].mean(0)
    fit = activated(ffn_taylor, FFNPlan("taylor", size=5, bias="taylor", between="gelu"), weights, x)
    torch.testing.assert_close(fit(x0, weights.activation), output(weights, x0), atol=1e-5, rtol=1e-5)


def test_factors_with_an_activation_between_are_never_merged_and_cost_less_than_dense() -> None:
    weights, x = random_ffn(), inputs()
    for size in (12, D):  # merged, if linear
        assert activated(ffn_rrr, FFNPlan("rrr", size=size, between="gelu"), weights, x).kind == "neurons"
    narrow = FFNWeights(torch.randn(9, D), torch.randn(9), torch.randn(D, 9), torch.randn(D), "silu")
    moments = linear_moments(narrow, x)
    dense = ffn_rrr.fit(narrow, moments, FFNPlan("rrr", size=9, between="gelu"))
    assert (dense.kind, dense.activation) == ("dense", None)
    assert ffn_rrr.fit(narrow, moments, FFNPlan("rrr", size=8, between="gelu")).kind == "neurons"


def test_max_error_judges_the_activated_map() -> None:
    weights, x = random_ffn(), inputs()
    error = activated(ffn_rrr, FFNPlan("rrr", size=9, between="gelu"), weights, x).held_out_error
    assert error is not None
    kinds = [
        activated(ffn_rrr, FFNPlan("rrr", size=9, between="gelu", max_error=error * f), weights, x).kind
        for f in (0.99, 1.01)
    ]
    assert kinds == ["dense", "neurons"]


@pytest.mark.parametrize(("size", "kind"), [(11, "lowrank"), (12, "merged"), (D, "merged")])
def test_more_than_half_rank_is_merged(size: int, kind: str) -> None:
    weights, x = random_ffn(), inputs()
    fit = ffn_rrr.fit(weights, linear_moments(weights, x), FFNPlan("rrr", size=size))
    assert (fit.kind, fit.size) == (kind, size)
    assert set(fit.tensors) == ({"map", "bias"} if kind == "merged" else {"down", "up", "bias"})


def test_forms_that_save_nothing_stay_dense() -> None:
    x = inputs()
    whole = random_ffn()
    fit = ffn_neurons.fit(whole, hidden_moments(whole, x), FFNPlan("neurons", size=M))
    assert fit.kind == "dense"
    assert fit.note is not None
    assert "cost" in fit.note
    narrow = FFNWeights(torch.randn(9, D), torch.randn(9), torch.randn(D, 9), torch.randn(D), "silu")
    fit = ffn_rrr.fit(narrow, linear_moments(narrow, x), FFNPlan("rrr", size=9))
    assert fit.kind == "dense"
    assert ffn_rrr.fit(narrow, linear_moments(narrow, x), FFNPlan("rrr", size=8)).kind == "lowrank"


def test_too_large_an_error_stays_dense() -> None:
    weights, x = random_ffn(), inputs()
    moments = linear_moments(weights, x)
    error = ffn_rrr.fit(weights, moments, FFNPlan("rrr", size=5)).held_out_error
    assert error is not None
    above = ffn_rrr.fit(weights, moments, FFNPlan("rrr", size=5, max_error=error * 1.01))
    below = ffn_rrr.fit(weights, moments, FFNPlan("rrr", size=5, max_error=error * 0.99))
    assert (above.kind, below.kind) == ("lowrank", "dense")
    assert below.note is not None
    assert "max_error" in below.note
