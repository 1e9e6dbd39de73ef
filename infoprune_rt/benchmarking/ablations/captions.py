"""What stands under every table and figure: the model, the test questions, and what an interval is one of."""

from __future__ import annotations

from typing import Any

from infoprune_rt.benchmarking.ablations import epsilon, gradients, heads, question_types, shift

_INTERVAL = "Means over n = {seeds} with their 95 % interval (Student's t); of one number there is no interval."
_TEXTS = {
    heads.GROUP: "Accuracy over the share of heads removed, by way of scoring, the same budget for all. " + _INTERVAL,
    epsilon.GROUP: "Accuracy over what is left of the blocks, all FFNs compressed alike and all heads kept, by ε "
    "(solid) and by k (rank, or kept neurons; dashed). A ring marks the knee: the smallest form within one point of "
    "its curve's best. One fit each.",
    gradients.GROUP: "Norm of each term's gradient with respect to the gates' logits, step by step, while eRank alone "
    "or the whole loss drives; dots where the task's is measured now and then. A norm of 0 is not drawn. One seed.",
    question_types.GROUP: "Accuracy by type of question while the FFNs of more and more blocks become linear, those "
    "with the smallest error first. One fit each.",
    shift.GROUP: "Accuracy on pictures of one style after calibrating, and learning ζ, on the same or on another. "
    + _INTERVAL,
}


def caption(result: dict[str, Any], group: str) -> str:
    """One group's caption; it always names the model."""
    seeds = result["options"]["seeds"]
    text = _TEXTS[group].format(seeds=f"{seeds} seed{'s' if seeds > 1 else ''}")
    questions, pictures = result["questions"], result["pictures"]
    return f"On {result['model']}, {questions} test questions about {pictures} pictures. {text}"
