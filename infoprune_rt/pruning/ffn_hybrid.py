"""Half of a size for hidden neurons with their activation, half for a linear path beside them."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

import torch
from torch import Tensor

from infoprune_rt.plan import FFNPlan
from infoprune_rt.pruning.ffn_forms import SIZE_STEP, FFNFit, FFNWeights, neuron_form, stay_dense
from infoprune_rt.pruning.ffn_neurons import eliminate
from infoprune_rt.pruning.least_squares import penalised, ridge
from infoprune_rt.pruning.moments import Twin

_PENALTY = 1e-4  # of the variance that a linear map leaves of the neurons, in the mean: as in ``ffn_neurons``
_ROUNDING = 1e-8  # of variances: less than that, when others were taken off them, may be their rounding


@dataclass(frozen=True)
class _Hybrid:
    """kept: neurons; down (r x d): the linear path's first factor; fc2 (d x (kept + r)) and bias: the second layer.

    moments: of what the second layer is given -> y.
    """

    kept: Tensor
    down: Tensor
    fc2: Tensor
    bias: Tensor
    moments: Twin

    @property
    def error(self) -> float:
        """The relative output error on the fitted rows."""
        return self.moments.fit.relative_error(self.fc2, self.bias)


def fit(weights: FFNWeights, moments: Twin, plan: FFNPlan) -> FFNFit:
    """k/2 neurons and a linear path of rank k/2 (method.md section 2); of an odd size the neurons get one more.

    ``moments`` of [hidden h; FFN input x] -> target y. Neurons go one after another as in ``ffn_neurons``, each time
    the one that the output misses least where a linear map of x, of full rank, is given: by what is left of h and y
    when x was regressed out. The path is the best one of its rank beside the neurons that stay. Without a size, both
    parts are the smallest multiple of 16, by bisection, whose relative output error on the fitted rows is at most
    epsilon; if none is, the block stays dense. spectrum: the relative error that each removal adds beside the full
    linear map, last removal first.
    """
    if plan.size is None:
        return _fit_within(plan.epsilon or 0.0, weights, moments, plan)
    rank = plan.size // 2
    order, spectrum = _most_needed_first(weights, moments, plan.size - rank)
    return _form(weights, plan, _solve(weights, moments, order[: plan.size - rank], rank), spectrum)


def _fit_within(epsilon: float, weights: FFNWeights, moments: Twin, plan: FFNPlan) -> FFNFit:
    most = min(weights.width, (weights.hidden_width - 1) // 2)
    halves = range(SIZE_STEP, most + 1, SIZE_STEP)
    if not halves:
        return stay_dense(weights, f"dense: the FFN is too small for {SIZE_STEP} neurons and a path of that rank")
    order, spectrum = _most_needed_first(weights, moments, halves[0])

    def solved(half: int) -> _Hybrid:
        return _solve(weights, moments, order[:half], half)

    place = bisect_left(halves, True, key=lambda half: solved(half).error <= epsilon)
    if place < len(halves):
        return _form(weights, plan, solved(halves[place]), spectrum)
    note = (
        f"dense: even {halves[-1]} neurons and a linear path of that rank leave {solved(halves[-1]).error:.3g} of the "
        f"output, above epsilon {epsilon:g}"
    )
    return stay_dense(weights, note, spectrum)


def _form(weights: FFNWeights, plan: FFNPlan, found: _Hybrid, spectrum: Tensor) -> FFNFit:
    return neuron_form(weights, plan, found.moments, found.kept, found.fc2, found.bias, spectrum, found.down)


def _most_needed_first(weights: FFNWeights, moments: Twin, least: int) -> tuple[Tensor, Tensor]:
    """All neurons, the last removed first (the first ``least``, which were not, in no order), and the spectrum."""
    data, m = moments.fit, weights.hidden_width
    covariance = data.cov_aa
    left, cross = _left_over(covariance, data.cov_ab, known=slice(m, None), rest=slice(m))
    floor = _ROUNDING * float(covariance.diagonal()[:m].mean())
    gram, penalty = penalised(left, _PENALTY)
    gram.diagonal().add_(floor)
    cross += (penalty + floor) * weights.fc2_weight.double().T
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    removed, costs = eliminate(inverse, inverse @ cross, m - least)
    stays = torch.ones(m, dtype=torch.bool, device=removed.device)
    stays[removed] = False
    scale = data.var_b.clamp_min(torch.finfo(torch.float64).tiny)
    return torch.cat((stays.nonzero().flatten(), removed.flip(0))), (costs / scale).flip(0)


def _solve(weights: FFNWeights, moments: Twin, kept: Tensor, rank: int) -> _Hybrid:
    """Reduced-rank regression of y on x with the kept neurons as covariates, then the whole second layer by ridge.

    With z the neurons and W z + B x the unrestricted fit, the path's rows are V^T B, V the top eigenvectors of
    B C B^T, where C is what z leaves of x's covariance: the least error that any path of this rank can have, up to
    the ridge.
    """
    m, width, size = weights.hidden_width, weights.width, len(kept)
    kept = kept.sort().values
    prior = weights.fc2_weight.double()[:, kept]
    beside = moments.select(torch.cat((kept, torch.arange(m, m + width, device=kept.device))))
    covariance = beside.fit.cov_aa
    whole, _ = ridge(beside, torch.cat((prior, prior.new_zeros(width, width)), 1))
    path = whole[:, size:]
    left, _ = _left_over(covariance, beside.fit.cov_ab, known=slice(size), rest=slice(size, None))
    explained = path @ left @ path.T
    _, axes = torch.linalg.eigh((explained + explained.T) / 2)
    up = axes.flip(1)[:, :rank]
    down = up.T @ path
    stretch = _stretch(covariance.addr(beside.fit.mean_a, beside.fit.mean_a), down)
    down, up = stretch[:, None] * down, up / stretch
    second_inputs = down.new_zeros(size + rank, size + width)  # [z; down x] of [z; x]
    second_inputs[:size, :size].fill_diagonal_(1)
    second_inputs[size:, size:] = down
    given = beside.through(second_inputs)
    return _Hybrid(kept, down, *ridge(given, torch.cat((prior, up), 1)), given)


def _left_over(covariance: Tensor, cross: Tensor, *, known: slice, rest: slice) -> tuple[Tensor, Tensor]:
    """Covariance of the regressors ``rest``, and theirs with y, when what ``known`` tells of them was taken off."""
    lifted, _ = penalised(covariance[known, known], _ROUNDING)
    told = torch.cholesky_solve(covariance[known, rest], torch.linalg.cholesky(lifted))
    return covariance[rest, rest] - covariance[rest, known] @ told, cross[rest] - told.T @ cross[known]


def _stretch(squares: Tensor, down: Tensor) -> Tensor:
    """Factors that make the path's values as large as the neurons', in the mean square: int8 has one step for both.

    squares: mean products of [kept neurons; x].
    """
    size = len(squares) - down.shape[1]
    neurons, path = squares.diagonal()[:size].mean(), ((down @ squares[size:, size:]) * down).sum(1)
    shown = (path > torch.finfo(path.dtype).eps * path.max()) & (neurons > 0)
    return (neurons / path).sqrt().where(shown, 1)
