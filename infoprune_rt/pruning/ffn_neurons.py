"""Keep the hidden neurons that the output cannot do without, and refit the second layer."""

from __future__ import annotations

import torch
from torch import Tensor

from infoprune_rt.plan import FFNPlan
from infoprune_rt.pruning.ffn_forms import FFNFit, FFNWeights, neuron_form, round_size, stay_dense
from infoprune_rt.pruning.least_squares import penalised, ridge
from infoprune_rt.pruning.moments import Twin

_PENALTY = 1e-4  # of the neurons' mean variance: breaks the tie between duplicates, hides no neuron
_PANEL = 64  # neurons removed between two updates of the inverse Gram matrix


def fit(weights: FFNWeights, moments: Twin, plan: FFNPlan) -> FFNFit:
    """Backward elimination with refit: drop, one after another, the neuron whose loss costs least.

    ``moments`` of hidden h -> target y. With C the penalised covariance of h and w the current
    refit, dropping neuron j and refitting all others raises the error by ||w_j||^2 / [C^-1]_jj
    exactly (the optimal-brain-surgeon identity). Without a size, neurons go as long as the
    relative output error on the fitted rows, penalty included, stays within epsilon. The kept
    neurons' second layer and bias are then solved by ridge, pulled towards their dense weights.
    spectrum: the relative error that each removal adds, last removal first.
    """
    data, m = moments.fit, weights.hidden_width
    prior = weights.fc2_weight.double()
    scale = data.var_b.clamp_min(torch.finfo(torch.float64).tiny)
    gram, penalty = penalised(data.cov_aa, _PENALTY)
    cross = data.cov_ab + penalty * prior.T
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))
    refit = inverse @ cross
    floor = float((data.var_b + penalty * prior.square().sum() - (cross * refit).sum()) / scale)
    if plan.size is not None:
        removed, costs = eliminate(inverse, refit, m - plan.size)
        size = plan.size
    else:
        epsilon = plan.epsilon or 0.0
        if floor > epsilon:
            note = f"dense: even all {m} neurons refitted leave {floor:.3g} of the output, above epsilon {epsilon:g}"
            return stay_dense(weights, note)
        removed, costs = eliminate(inverse, refit, m - 1, (epsilon - floor) * float(scale))
        size = round_size(m - len(removed), m)
    gone = torch.zeros(m, dtype=torch.bool, device=inverse.device)
    gone[removed[: m - size]] = True
    kept = (~gone).nonzero().flatten()
    chosen = moments.select(kept)
    fc2, bias = ridge(chosen, prior[:, kept])
    return neuron_form(weights, plan, chosen, kept, fc2, bias, (costs / scale).flip(0))


def eliminate(inverse: Tensor, refit: Tensor, count: int, budget: float = float("inf")) -> tuple[Tensor, Tensor]:
    """Remove up to ``count`` neurons while the summed error increase stays within ``budget``.

    inverse: C^-1 (m x m); refit: least-squares weights (m x q), row per neuron. Gives the removed
    neurons in order and the error increase of each. Removing j updates
    C^-1 -= f f^T and refit -= f a with f = C^-1[:, j] / sqrt(C^-1_jj), a = refit_j / sqrt(C^-1_jj);
    a panel of such updates is applied at once, so that the work is m^3 in matrix products.
    """
    alive = torch.arange(len(inverse), device=inverse.device)
    removed: list[Tensor] = []
    costs: list[Tensor] = []
    spent = 0.0
    while count > 0:
        asked = min(count, _PANEL)
        picked, raised, f, a = _panel(inverse, refit, asked, budget - spent)
        removed.append(alive[picked])
        costs.append(raised)
        count -= asked
        spent += float(raised.sum())
        if len(picked) < asked or count == 0:
            break
        stays = torch.ones(len(alive), dtype=torch.bool, device=alive.device)
        stays[picked] = False
        alive, f = alive[stays], f[stays]
        inverse = inverse[stays][:, stays].addmm_(f, f.T, alpha=-1)
        refit = refit[stays].addmm_(f, a, alpha=-1)
    if not removed:
        return alive[:0], inverse.new_zeros(0)
    return torch.cat(removed), torch.cat(costs)


def _panel(inverse: Tensor, refit: Tensor, count: int, budget: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The next removals (at most ``count``), their costs, and their updates f (r x t), a (t x q)."""
    f = inverse.new_zeros(len(inverse), count)
    a = refit.new_zeros(count, refit.shape[1])
    diagonal = inverse.diagonal().clone()
    energy = refit.square().sum(1)
    picked: list[int] = []
    costs: list[float] = []
    for t in range(count):
        cost = energy.clamp_min(0) / diagonal
        cost[picked] = float("inf")
        j = int(cost.argmin())
        if float(cost[j]) > budget - sum(costs):
            break
        root = diagonal[j].sqrt()
        f[:, t] = (inverse[:, j] - f[:, :t] @ f[j, :t]) / root
        a[t] = (refit[j] - f[j, :t] @ a[:t]) / root
        overlap = refit @ a[t] - f[:, :t] @ (a[:t] @ a[t])
        energy += f[:, t] * (f[:, t] * a[t].square().sum() - 2 * overlap)
        diagonal -= f[:, t].square()
        picked.append(j)
        costs.append(float(cost[j]))
    done = len(picked)
    where = torch.tensor(picked, dtype=torch.long, device=inverse.device)
    return where, inverse.new_tensor(costs), f[:, :done], a[:done]
