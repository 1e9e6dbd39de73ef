"""Which function fits which FFN mode, and which data it asks for. A new mode is one line here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from infoprune_rt.plan import BlockPlan, FFNPlan, Plan
from infoprune_rt.pruning import ffn_hybrid, ffn_neurons, ffn_rrr, ffn_taylor
from infoprune_rt.pruning.calibration import Regressor, Wants
from infoprune_rt.pruning.ffn_forms import FFNFit, FFNWeights, stay_dense
from infoprune_rt.pruning.moments import Twin


@dataclass(frozen=True)
class _Mode:
    fit: Callable[[FFNWeights, Twin, FFNPlan], FFNFit]
    regressor: Regressor
    means_only: bool = False


_MODES = {
    "taylor": _Mode(ffn_taylor.fit, "input", means_only=True),
    "rrr": _Mode(ffn_rrr.fit, "input"),
    "neurons": _Mode(ffn_neurons.fit, "hidden"),
    "hybrid": _Mode(ffn_hybrid.fit, "both"),
}


def wants_of(plan: Plan, block: BlockPlan) -> Wants:
    """The data that this block's fits need. A block that keeps all heads keeps its projection."""
    refit = plan.refit and len(block.heads) < plan.shape.num_heads
    heads = block.heads if refit else None
    if block.ffn.mode == "dense":
        return Wants(heads=heads)
    mode = _MODES[block.ffn.mode]
    return Wants(mode.regressor, mode.means_only, heads)


def fit_ffn(weights: FFNWeights, moments: Twin | None, plan: FFNPlan) -> FFNFit:
    """Fit one block's FFN as planned; ``moments`` as ``wants_of`` asked for them.

    A fit that has an ``activation`` still has to be ``corrected``.
    """
    if plan.mode == "dense" or moments is None:
        return stay_dense(weights)
    return _MODES[plan.mode].fit(weights, moments, plan)
