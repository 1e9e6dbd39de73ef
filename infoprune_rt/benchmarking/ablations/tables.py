"""Rows as tables: a head and lines of cells, for the terminal and for Markdown."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from infoprune_rt.benchmarking.ablations import epsilon, gradients, heads, question_types, shift
from infoprune_rt.benchmarking.ablations.following import TERMS
from infoprune_rt.benchmarking.ablations.summary import cell, families, over_seeds, select, values
from infoprune_rt.benchmarking.ablations.work_file import Row

Cells = tuple[list[str], list[list[str]]]


def heads_table(rows: Sequence[Row]) -> Cells:
    """Accuracy over all questions: a line per way, columns over the share removed, without and with refit."""
    found = select(rows, group=heads.GROUP)
    columns = [(refit, removed) for refit in (False, True) for removed in values(found, "removed")]
    titles = [f"{removed:.0%} removed{', refit' if refit else ''}" for refit, removed in columns]
    body = []
    for way in values(found, "name"):
        of_way = select(found, name=way)
        body.append([way, *(cell(over_seeds(select(of_way, refit=r, removed=x))) for r, x in columns)])
    return ["heads scored by", *titles], body


def families_table(rows: Sequence[Row]) -> Cells:
    """The same by task family, a line per way, share and refit."""
    found = select(rows, group=heads.GROUP)
    shown = families(found)
    body = []
    for refit in (False, True):
        for removed in values(found, "removed"):
            for way in values(found, "name"):
                seeds = select(found, refit=refit, removed=removed, name=way)
                title = f"{removed:.0%} removed{', refit' if refit else ''}: {way}"
                body.append([title, *(cell(over_seeds(seeds, family)) for family in shown), str(len(seeds))])
    return ["heads scored by", *shown.values(), "n"], body


def epsilon_table(rows: Sequence[Row]) -> Cells:
    """A line per mode and epsilon or size."""
    found = select(rows, group=epsilon.GROUP)
    shown = families(found)
    body = []
    for row in found:
        limit = f"ε = {row['epsilon']:g}" if row["epsilon"] is not None else f"k = {row['size']}"
        scores = [f"{row['accuracy'][family]:.1f}" for family in shown]
        body.append([f"{row['name']}, {limit}", f"{row['parameters_left']:.0%}", _sizes(row), *scores])
    return ["FFNs", "block parameters left", "sizes, block by block", *shown.values()], body


def _sizes(row: Row) -> str:
    found = ["dense" if size is None else str(size) for size in row["ffn_sizes"]]
    return found[0] if len(set(found)) == 1 else " ".join(found)


def gradients_table(rows: Sequence[Row]) -> Cells:
    """A line per drive: norms at the first and the last step, the Euler residual, and how far the gates came."""
    body = []
    for row in select(rows, group=gradients.GROUP):
        norms = [_norm(row[f"gradient_{term}"][0]) for term in TERMS]
        euler = max(row["euler_erank"] + row["euler_ks"])
        closed = f"{row['heads_closed'][-1]:.0f}"
        end = [_norm(row["gradient_erank"][-1]), f"{euler:.0e}", f"{row['mean_zeta'][-1]:.2f}", closed]
        body.append([f"{row['name']}, {row['optimizer']}, lr {row['lr']:g}", *norms, *end])
    head = ["driven by", "task, first step", "eRank, first step", "KS, first step", "eRank, last step"]
    return [*head, "largest Euler residual", "mean ζ at the end", "heads with ζ < 0.5"], body


def _norm(value: float) -> str:
    return f"{value:.1e}" if value else "0"


def types_table(rows: Sequence[Row]) -> Cells:
    """A line per question type, hardest hit by the best linear map first."""
    found = select(rows, group=question_types.GROUP)
    columns = [(row["name"], row["linear_blocks"]) for row in found]
    titles = [name if not blocks else f"{name}, {blocks} linear" for name, blocks in columns]
    body = []
    for kind, dense in _hardest_first(found):
        scores = [f"{row['types'][kind]['accuracy']:.1f}" for row in found]
        body.append([f"{kind} ({dense['questions']})", *scores])
    return ["type (questions)", *titles], body


def _hardest_first(found: Sequence[Row]) -> list[tuple[str, dict[str, float]]]:
    """Types with the dense model's scores, by the points that the best linear map loses."""
    if not found:
        return []
    dense, rest = found[0]["types"], select(found[1:], name=question_types.MODES[0])

    def lost(kind: str) -> float:
        return float(sum(dense[kind]["accuracy"] - row["types"][kind]["accuracy"] for row in rest))

    return sorted(dense.items(), key=lambda item: -lost(item[0]))


def shift_table(rows: Sequence[Row]) -> Cells:
    """A line per recipe and style it was fitted on, a column per style it was tested on."""
    found = select(rows, group=shift.GROUP)
    tested = values(found, "tested_on")
    body = []
    for name in values(found, "name"):
        of_name = select(found, name=name)
        for fitted in dict.fromkeys(row["fitted_on"] for row in of_name):
            lines = select(of_name, fitted_on=fitted)
            title = name if fitted is None else f"{name}, fitted on {fitted}"
            body.append([title, *(cell(over_seeds(select(lines, tested_on=style))) for style in tested)])
    return ["tower", *(f"tested on {style}" for style in tested)], body


TABLES: dict[str, tuple[str, Callable[[Sequence[Row]], Cells]]] = {  # name -> whose caption, and how it is made
    "heads": (heads.GROUP, heads_table),
    "heads by family": (heads.GROUP, families_table),
    "epsilon": (epsilon.GROUP, epsilon_table),
    "gradients": (gradients.GROUP, gradients_table),
    "question types": (question_types.GROUP, types_table),
    "shift": (shift.GROUP, shift_table),
}
