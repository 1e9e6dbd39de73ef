"""Neurons and a linear path beside them: what was planted is found, and nothing of that size does better."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_towers import ARCHITECTURES, compact_tower, last_hidden, make_plan, random_batch, random_tower
from test_ffn_fits import CUT, D, M, N, hidden_moments, inputs, linear_moments, output, random_ffn, relative_error
from torch import Tensor

from infoprune_rt.plan import FFNPlan
from infoprune_rt.pruning import ffn_hybrid, ffn_neurons, ffn_rrr
from infoprune_rt.pruning.apply import apply_plan
from infoprune_rt.pruning.ffn_forms import FFNFit, FFNWeights, activate
from infoprune_rt.pruning.moments import Moments, Twin


def both_moments(weights: FFNWeights, x: Tensor, target: Tensor | None = None) -> Twin:
    moments = Twin.empty(weights.hidden_width + weights.width, weights.width)
    rows = torch.cat((weights.hidden(x), x), 1)
    moments.add(rows, output(weights, x) if target is None else target, CUT * len(x) // N)
    return moments


def kept_neurons(fit: FFNFit, weights: FFNWeights) -> list[int]:
    rows = fit.tensors["fc1_weight"][: len(fit.tensors["fc1_weight"]) - fit.linear]
    matches = (rows[:, None] == weights.fc1_weight[None]).all(2)
    return [int(row.nonzero()[0]) for row in matches]


def planted(neurons: int, rank: int) -> tuple[FFNWeights, set[int]]:
    """An FFN of ``neurons`` that bend and 40 that do not (quick-GELU passes what is large), on ``rank`` directions."""
    straight = torch.randn(40, rank) @ torch.randn(rank, D) / D
    first = torch.cat((torch.randn(neurons, D) / D**0.5, straight))
    bias = torch.cat((torch.randn(neurons) * 0.3, torch.full((40,), 60.0)))
    order = torch.randperm(neurons + 40)
    second = torch.cat((torch.randn(D, neurons), torch.randn(D, 40) / 8), 1)
    weights = FFNWeights(first[order], bias[order], second[:, order], torch.randn(D), "quick_gelu")
    return weights, set((order < neurons).nonzero().flatten().tolist())


@pytest.mark.parametrize(("neurons", "rank"), [(7, 7), (8, 3), (1, 1), (11, 11)])
def test_planted_neurons_and_directions_are_found(neurons: int, rank: int) -> None:
    weights, bent = planted(neurons, rank)
    x = inputs()
    fit = ffn_hybrid.fit(weights, both_moments(weights, x), FFNPlan("hybrid", size=2 * neurons))
    assert (fit.kind, fit.size, fit.linear) == ("hybrid", 2 * neurons, neurons)
    assert set(kept_neurons(fit, weights)) == bent
    assert relative_error(fit, weights, x[CUT:]) < 1e-6
    linear = ffn_rrr.fit(weights, linear_moments(weights, x), FFNPlan("rrr", size=neurons))
    few = ffn_neurons.fit(weights, hidden_moments(weights, x), FFNPlan("neurons", size=neurons))
    assert min(relative_error(linear, weights, x[CUT:]), relative_error(few, weights, x[CUT:])) > 1e-3


@given(size=st.integers(2, 2 * D), activation=st.sampled_from(("quick_gelu", "gelu", "silu")))
@settings(max_examples=20)
def test_it_errs_no_more_than_either_half_alone(size: int, activation: str) -> None:
    weights, x = random_ffn(activation), inputs()
    fit = ffn_hybrid.fit(weights, both_moments(weights, x), FFNPlan("hybrid", size=size))
    path = ffn_rrr.fit(weights, linear_moments(weights, x), FFNPlan("rrr", size=size // 2))
    few = ffn_neurons.fit(weights, hidden_moments(weights, x), FFNPlan("neurons", size=size - size // 2))
    mine, *others = (relative_error(one, weights, x[:CUT]) for one in (fit, path, few))
    assert mine <= min(others) * 1.01


def alternated(z: Tensor, x: Tensor, y: Tensor, rank: int) -> float:
    """The least error of W z + U D x + c that alternating least squares find, from D at random."""
    z, x, y = (part - part.mean(0) for part in (z, x, y))
    down = torch.randn(x.shape[1], rank, dtype=x.dtype)
    for _ in range(300):
        regressors = torch.cat((z, x @ down), 1)
        solved = torch.linalg.lstsq(regressors, y).solution
        up = solved[z.shape[1] :]
        rest = (y - z @ solved[: z.shape[1]]) @ torch.linalg.pinv(up)
        down = torch.linalg.lstsq(x, rest).solution
    return float((y - regressors @ solved).square().sum() / y.square().sum())


def test_no_other_path_of_its_rank_is_better_beside_its_neurons() -> None:
    weights, x = random_ffn(), inputs()
    fit = ffn_hybrid.fit(weights, both_moments(weights, x), FFNPlan("hybrid", size=20))
    rows, y = x[:CUT], output(weights, x[:CUT])
    z = weights.hidden(rows)[:, kept_neurons(fit, weights)]
    best = alternated(z.double(), rows.double(), y.double(), fit.linear)
    assert relative_error(fit, weights, rows) <= best * 1.01  # what the ridge costs on these rows


def test_a_fit_is_what_it_says() -> None:
    weights, x = random_ffn(), inputs()
    moments = both_moments(weights, x)
    fit = ffn_hybrid.fit(weights, moments, FFNPlan("hybrid", size=13))
    assert (fit.size, fit.linear) == (13, 6)  # the neurons have one more
    kept, (fc1, b1, fc2, b2) = kept_neurons(fit, weights), fit.tensors.values()
    assert kept == sorted(set(kept))
    assert torch.equal(b1, torch.cat((weights.fc1_bias[kept], torch.zeros(6))))
    before = x @ fc1.T + b1
    hidden = torch.cat((activate("quick_gelu", before[:, :7]), before[:, 7:]), 1)
    torch.testing.assert_close(fit(x, "quick_gelu"), hidden @ fc2.T + b2)
    assert fit.held_out_error == pytest.approx(relative_error(fit, weights, x[CUT:]), rel=1e-3)
    squares = hidden[:CUT].double().square().mean(0)
    torch.testing.assert_close(squares[7:], squares[:7].mean().expand(6), rtol=1e-4, atol=0)


def wide_ffn() -> tuple[FFNWeights, Tensor]:
    d, m = 64, 150
    weights = FFNWeights(torch.randn(m, d) / 6, torch.randn(m) * 0.3, torch.randn(d, m), torch.randn(d), "gelu")
    return weights, torch.randn(3000, d) @ torch.randn(d, d) / 8


def test_epsilon_is_the_output_error_of_the_smallest_size_that_meets_it() -> None:
    weights, x = wide_ffn()
    moments = both_moments(weights, x)
    rows = x[: CUT * len(x) // N]
    errors = {
        half: relative_error(ffn_hybrid.fit(weights, moments, FFNPlan("hybrid", size=2 * half)), weights, rows)
        for half in (16, 32, 48, 64)
    }
    assert errors[16] > errors[32] > errors[48] > errors[64]
    for half in (16, 32, 48, 64):
        found = ffn_hybrid.fit(weights, moments, FFNPlan("hybrid", epsilon=errors[half] * 1.001))
        assert (found.size, found.linear) == (2 * half, half)


def test_what_cannot_meet_epsilon_stays_dense() -> None:
    weights, x = wide_ffn()
    fit = ffn_hybrid.fit(weights, both_moments(weights, x, torch.randn(len(x), 64)), FFNPlan("hybrid", epsilon=0.05))
    assert fit.kind == "dense"
    assert fit.note is not None
    assert fit.note.startswith("dense: even 64 neurons and a linear path of that rank leave 0.")
    narrow = FFNWeights(torch.randn(30, D), torch.randn(30), torch.randn(D, 30), torch.randn(D), "silu")
    fit = ffn_hybrid.fit(narrow, both_moments(narrow, inputs()), FFNPlan("hybrid", epsilon=0.05))
    assert fit.note == "dense: the FFN is too small for 16 neurons and a path of that rank"


def test_forms_that_save_nothing_or_err_too_much_stay_dense() -> None:
    x = inputs()
    narrow = FFNWeights(torch.randn(9, D), torch.randn(9), torch.randn(D, 9), torch.randn(D), "silu")
    moments = both_moments(narrow, x)
    assert ffn_hybrid.fit(narrow, moments, FFNPlan("hybrid", size=9)).kind == "dense"
    fit = ffn_hybrid.fit(narrow, moments, FFNPlan("hybrid", size=8))
    assert (fit.kind, fit.linear) == ("hybrid", 4)
    assert fit.held_out_error is not None
    for factor, kind in ((0.99, "dense"), (1.01, "hybrid")):
        plan = FFNPlan("hybrid", size=8, max_error=fit.held_out_error * factor)
        assert ffn_hybrid.fit(narrow, moments, plan).kind == kind


def test_fewer_tokens_than_columns_still_predict() -> None:
    weights, x = random_ffn(), inputs()
    few = Twin.empty(M + D, D)
    rows = x[: D + 8]
    few.add(torch.cat((weights.hidden(rows), rows), 1), output(weights, rows), D - 3)
    assert relative_error(ffn_hybrid.fit(weights, few, FFNPlan("hybrid", size=8)), weights, x) < 1.1


def test_a_linear_ffn_and_one_that_never_fires_are_fitted() -> None:
    """Nothing is left of hidden values when x was regressed out, or nothing was there."""
    x = inputs()
    for bias in (60.0, -80.0):
        weights = FFNWeights(
            torch.randn(M, D) / D, torch.full((M,), bias), torch.randn(D, M), torch.randn(D), "quick_gelu"
        )
        fit = ffn_hybrid.fit(weights, both_moments(weights, x), FFNPlan("hybrid", size=2 * D))
        assert all(tensor.isfinite().all() for tensor in fit.tensors.values())
        assert torch.allclose(fit(x, "quick_gelu"), output(weights, x), rtol=1e-3, atol=1e-2)


def test_moments_of_a_mapping_are_those_of_the_mapped_rows() -> None:
    a, b, mapping = torch.randn(50, 6).double(), torch.randn(50, 3), torch.randn(4, 6).double()
    direct, mapped = Moments(4, 3, second=True), Moments(6, 3, second=True)
    direct.add(a @ mapping.T, b)
    mapped.add(a, b)
    mapped = mapped.through(mapping)
    assert mapped.n == direct.n
    for name in ("mean_a", "mean_b", "cov_aa", "cov_ab", "var_b"):
        torch.testing.assert_close(getattr(mapped, name), getattr(direct, name))


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_tower_of_hybrids(architecture: str, sequential: bool) -> None:
    """Closer to the dense one than a tower of its linear paths alone; specs and plan say what each block has."""
    tower, adapter = random_tower(architecture)
    batches = [random_batch(architecture) for _ in range(12)]
    dense, drifts = last_hidden(tower, batches[0]), {}
    for mode, size in (("hybrid", 33), ("rrr", 16)):
        plan = make_plan(architecture, [(0, 1, 2)] * 4, FFNPlan(mode, size=size), sequential=sequential)
        applied = apply_plan(tower, adapter, plan, lambda: batches)
        made = last_hidden(compact_tower(architecture, applied), batches[0])
        drifts[mode] = float((made - dense).square().sum())
        if mode == "hybrid":
            spec = {"num_heads": 3, "ffn": "hybrid", "size": 33, "linear": 16}
            assert applied.specs == [spec] * 4
            assert {(b.ffn.kind, b.ffn.fitted_size, b.ffn.fitted_linear) for b in applied.plan.blocks} == {
                ("hybrid", 33, 16)
            }
    assert drifts["hybrid"] < drifts["rrr"]
