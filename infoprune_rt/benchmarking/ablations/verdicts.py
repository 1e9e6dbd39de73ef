"""The paper's claims beside what was measured here. Every sentence is made of the rows; none knows its outcome."""

from __future__ import annotations

from collections.abc import Sequence

from infoprune_rt.benchmarking.ablations import epsilon, gradients, heads, question_types, shift
from infoprune_rt.benchmarking.ablations.intervals import Estimate
from infoprune_rt.benchmarking.ablations.objectives import BOTH_ALONE, CONTROLS, KS_ALONE, PAPER, TASK, TASK_KS
from infoprune_rt.benchmarking.ablations.styles import PLAIN, STYLES
from infoprune_rt.benchmarking.ablations.summary import lead, select, values
from infoprune_rt.benchmarking.ablations.work_file import Row

COUNTING = "how many"  # as VQAv2 calls it, too
Verdict = tuple[str, str, str]  # claim, what was measured, what that says here


def verdicts(rows: Sequence[Row]) -> list[Verdict]:
    """One line per claim whose rows are there."""
    found = [*_terms(rows), *_controls(rows), *_stall(rows), *_epsilon(rows), *_sensitivity(rows)]
    return [*found, *_question_types(rows), *_shift(rows)]


def judged(found: Estimate) -> str:
    """What an interval says of a claimed lead. It is one over seeds: the test questions' own error is not in it."""
    if found.low is None or found.high is None:
        return "not decided: one seed has no interval"
    where = f"over {found.n} seeds of learning, on these test questions"
    if found.low > 0:
        return f"holds {where}"
    return f"the reverse holds {where}" if found.high < 0 else f"not decided by {found.n} seeds of learning"


def _lead_line(claim: str, rows: Sequence[Row], one: str, other: str, removed: float, refit: bool) -> list[Verdict]:
    same = select(rows, group=heads.GROUP, removed=removed, refit=refit)
    found = lead(select(same, name=one), select(same, name=other))
    if found is None:
        return []
    where = f"{removed:.0%} of the heads removed, {'with' if refit else 'without'} refit"
    return [(claim, f"{found} points, {where} (n = {found.n})", judged(found))]


def _terms(rows: Sequence[Row]) -> list[Verdict]:
    shares = values(select(rows, group=heads.GROUP), "removed")
    lines: list[Verdict] = []
    for both, only in ((PAPER, TASK_KS), (BOTH_ALONE, KS_ALONE)):  # with the task loss, and without it
        for removed in shares:
            claim = f"Table 2: with eRank beside KS more accuracy is kept than with KS only ({both} against {only})"
            lines += _lead_line(claim, rows, both, only, removed, False)
    for removed in shares[-1:]:
        claim = "The information terms choose better heads than the task loss alone"
        lines += _lead_line(claim, rows, PAPER, TASK, removed, False)
    return lines


def _controls(rows: Sequence[Row]) -> list[Verdict]:
    shares = values(select(rows, group=heads.GROUP), "removed")
    lines: list[Verdict] = []
    for control in CONTROLS:
        for refit in (False, True):
            claim = f"ζ chooses better heads than {control}"
            lines += _lead_line(claim, rows, PAPER, control, shares[-1], refit) if shares else []
    return lines


def _stall(rows: Sequence[Row]) -> list[Verdict]:
    alone = select(rows, group=gradients.GROUP, name=gradients.ERANK)
    lines: list[Verdict] = []
    for row in alone[:1]:  # all begin at the same gates
        erank, task = row["gradient_erank"][0], row["gradient_task"][0]
        told = f"gradient norms at open gates: eRank {erank:.1e}, task {task:.1e}"
        says = "eRank's is the smaller one" if erank < task else "eRank's is not the smaller one"
        lines.append(("Section 5.3: the gradients of L_eRank vanish", told, says))
    for optimizer in values(alone, "optimizer"):
        runs = select(alone, optimizer=optimizer)
        closed = {row["lr"]: row["heads_closed"][-1] for row in runs}
        told = ", ".join(f"{count:.0f} at learning rate {lr:g}" for lr, count in closed.items())
        moved = [lr for lr, count in closed.items() if count > 0]
        says = f"it moves from a rate of {min(moved):g} on, of those tried" if moved else "it stalls at all rates tried"
        claim = f"Section 5.3: eRank alone stalls without an extreme learning rate ({optimizer})"
        lines.append((claim, f"heads closed after {len(runs[0]['mean_zeta'])} steps: {told}", says))
    return lines


def _epsilon(rows: Sequence[Row]) -> list[Verdict]:
    lines: list[Verdict] = []
    for mode in epsilon.MODES:
        found = [row for row in select(rows, group=epsilon.GROUP, name=mode) if row["epsilon"] is not None]
        if len(found) < 2:
            continue
        first, last = found[0], found[-1]
        fall = first["accuracy"]["overall"] - last["accuracy"]["overall"]
        told = "; ".join(f"{row['accuracy']['overall']:.1f} at {row['epsilon']:g}" for row in found)
        says = f"it falls by {fall:.1f} points" if fall > epsilon.CLOSE else "no fall of more than a point here"
        lines.append((f"Table 4: accuracy falls sharply as ε grows ({mode})", told, says))
    return lines


def _sensitivity(rows: Sequence[Row]) -> list[Verdict]:
    """Heads and FFNs by the paper's recipes: points lost per tenth of the blocks' parameters removed."""
    dense = select(rows, group=question_types.GROUP, name=question_types.DENSE)
    pruned = select(rows, group=heads.GROUP, name=PAPER, refit=False)
    linear = [row for row in select(rows, group=epsilon.GROUP, name="taylor") if row["epsilon"] is not None]
    pruned, linear = ([row for row in found if row["parameters_left"] < 1] for found in (pruned, linear))
    if not dense or not pruned or not linear:
        return []
    whole = dense[0]["accuracy"]["overall"]

    def price(row: Row) -> float:
        return float((whole - row["accuracy"]["overall"]) / (1 - row["parameters_left"]) / 10)

    most = [row for row in pruned if row["removed"] == max(values(pruned, "removed"))]
    by_heads, by_ffns = max(map(price, most)), min(map(price, linear))
    told = f"heads at most {by_heads:.1f}, FFNs (taylor) at least {by_ffns:.1f} points per tenth of the parameters"
    says = "holds here" if by_ffns > by_heads else "does not hold here"
    return [("FFN pruning is more sensitive than head pruning", told, says)]


def _question_types(rows: Sequence[Row]) -> list[Verdict]:
    found = select(rows, group=question_types.GROUP)
    dense = select(found, name=question_types.DENSE)
    lines: list[Verdict] = []
    for mode in question_types.MODES if dense else ():
        for row in select(found, name=mode):
            lost = {kind: s["accuracy"] - row["types"][kind]["accuracy"] for kind, s in dense[0]["types"].items()}
            worst, best = max(lost, key=lost.__getitem__), min(lost, key=lost.__getitem__)
            claim = f"Open question: which questions need the non-linearity ({mode}, {row['linear_blocks']} blocks)"
            told = f"points lost: most by “{worst}” ({lost[worst]:.1f}), least by “{best}” ({lost[best]:.1f})"
            told += f"; “{COUNTING}” {lost[COUNTING]:.1f}" if COUNTING in lost else ""
            lines.append((claim, told, f"“{worst}” suffers most"))
    return lines


def _shift(rows: Sequence[Row]) -> list[Verdict]:
    lines: list[Verdict] = []
    for name in (shift.FFN, shift.BOTH):
        for style in STYLES:
            on_style = select(rows, group=shift.GROUP, name=name, tested_on=style)
            found = lead(select(on_style, fitted_on=style), select(on_style, fitted_on=PLAIN))
            if found is not None:
                says = judged(found) if name == shift.BOTH else f"{found} points from one fit of each"
                claim = f"Open question: calibrating on {style} pictures helps on them ({name})"
                lines.append((claim, f"{found} points over calibrating on plain ones (n = {found.n})", says))
    return lines
