"""Put the measured figures into the texts: their tables are written here from the result files, never by hand.

``make report`` runs this on results/<machine>/ and draws the README's picture from its demo.json; with ``--check`` it
only says whether the texts are up to date.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import typer

from infoprune_rt.benchmarking.ablations.captions import caption
from infoprune_rt.benchmarking.ablations.figures import figure_path
from infoprune_rt.benchmarking.ablations.tables import TABLES as ABLATIONS
from infoprune_rt.benchmarking.ablations.verdicts import verdicts
from infoprune_rt.benchmarking.cpu_tower.contenders import (
    COMPILED,
    DENSE,
    OPENVINO,
    ORT,
    ORT_INT8,
    OUR_INT8,
    OURS,
    PLAIN,
)
from infoprune_rt.benchmarking.cpu_tower.show import by_case, goal_cells
from infoprune_rt.benchmarking.table1.charts import stage_bars
from infoprune_rt.benchmarking.table1.show import HEADS, base_of, by_workload, cells, markdown, profile_table
from infoprune_rt.demo.report_html import overview_figure
from infoprune_rt.errors import InfopruneError
from infoprune_rt.files import write_file, write_text

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
TEXTS = (
    ROOT / "README.md",
    ROOT / "docs" / "ablations.md",
    ROOT / "docs" / "tiny-vlm.md",
    ROOT / "docs" / "table1.md",
    ROOT / "infoprune_rt/demo/assets/tiny-vlm/README.md",
)
COMPARED = (DENSE, PLAIN, COMPILED, OPENVINO, ORT, ORT_INT8, OURS, OUR_INT8)
FAMILIES = ("vqa", "text", "relations", "overall")


def _source(result: dict[str, Any], path: Path) -> str:
    """The line below a table. Its link is as seen from the root; ``filled`` turns it for texts that lie elsewhere."""
    where = path.relative_to(ROOT)
    machine = f"{result['environment']['cores']} cores, {', '.join(result['environment']['instruction_sets'])}"
    return f"\n*From [`{where}`]({where}): `{result['command']}`, {result['date'][:10]}, {machine}.*\n"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _tiny_vlm(path: Path, wanted: Callable[[str, str], bool]) -> str:
    """Means over seeds of the wanted ways (group, name) to compress the tiny VLM."""
    result = json.loads(path.read_text())
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in result["rows"]:
        if not wanted(row["group"], row["name"]):
            continue
        groups.setdefault((row["group"], row["name"]), []).append(row)
    body = []
    for (group, name), rows in groups.items():
        means = [f"{fmean(row['accuracy'][family] for row in rows):.1f}" for family in FAMILIES]
        overall = [row["accuracy"]["overall"] for row in rows]
        spread = f" ({min(overall):.1f} to {max(overall):.1f})" if len(rows) > 1 else ""
        left = fmean(row["parameters_left"] for row in rows)
        body.append([f"{group}: {name}", f"{left:.0%}", *means[:-1], means[-1] + spread])
    head = ["tower", "block parameters left", "VQA", "text", "relations", "all"]
    return _table(head, body) + _source(result, path)


def fullsize(path: Path) -> str:
    """Dense against compact at the 7B tower's size."""
    result = json.loads(path.read_text())
    body = [
        [
            f"{row['dtype']}, {row['patches']} patches",
            f"{row['dense_ms']:.0f} ms",
            f"{row['compact_ms']:.0f} ms",
            f"{row['speedup']:.1f}×",
            f"{row['csrc_ms']:.0f} ms",
            f"{row['dense_ms'] / row['csrc_ms']:.1f}×",
            f"{row['compact_parameters'] / row['dense_parameters']:.0%}",
            f"{row['compact_flops'] / row['dense_flops']:.0%}",
            f"{row['compaction_seconds']:.0f} s, {row['peak_memory_gib']:.1f} GiB",
        ]
        for row in result["rows"]
    ]
    head = ["32 blocks", "transformers, dense", "compact, plain PyTorch", "faster", "compact, `csrc`", "faster"]
    head += ["parameters", "FLOPs", "compaction"]
    return _table(head, body) + _source(result, path)


def cpu_tower(path: Path) -> str:
    """The ways to run one compact tower on the CPU, side by side; a dash where one was not measured."""
    result = json.loads(path.read_text())
    rows = [row for row in result["rows"] if row["name"] in COMPARED]
    names = [name for name in COMPARED if any(row["name"] == name for row in rows)]
    body = []
    for where, found in by_case(rows).items():
        case = {row["name"]: row for row in found}
        times = [f"{case[name]['p50_ms']:.0f} ms" if name in case else "–" for name in names]
        body.append([where, *times, f"{case[OURS]['share_of_gemm_rate']:.0%}"])
    heads = [name.removeprefix("compact, ") for name in names]
    return _table(["", *heads, "csrc: of the GEMM rate"], body) + _source(result, path)


def cpu_goals(path: Path) -> str:
    """What the CPU engine was to reach, and what it reached."""
    result = json.loads(path.read_text())
    body = [[*goal_cells(goal), "yes" if goal["met"] else "no"] for goal in result["goals"]]
    return _table(["", "goal", "aim", "reached", "met"], body) + _source(result, path)


def int8(path: Path) -> str:
    """What int8 weights cost the tiny VLM."""
    result = json.loads(path.read_text())
    body = [
        [row["group"], row["name"], f"{row['bytes'] / 1e6:.1f} MB", *(f"{row['accuracy'][f]:.1f}" for f in FAMILIES)]
        for row in result["rows"]
    ]
    return _table(["tower", "weights", "blocks", "VQA", "text", "relations", "all"], body) + _source(result, path)


def int8_speed(path: Path) -> str:
    """Error, bytes and time of int8 weights at the 7B tower's sizes, on the C++ kernels."""
    result = json.loads(path.read_text())
    body = [
        [
            f"{row['patches']} patches, {row['blocks']} blocks, {row['name'].removesuffix(', csrc')}",
            f"{row['bytes'] / 1e6:.1f} MB",
            f"{row['rms_error']:.2%}",
            f"{row['max_error']:.2%}",
            f"{row['blocks_p50_ms']:.0f} ms",
            f"{row['tower_p50_ms']:.0f} ms",
        ]
        for row in result["fullsize_rows"]
        if row["backend"] == "csrc"
    ]
    head = ["csrc", "blocks' weights", "RMS error", "largest error", "blocks", "whole tower"]
    return _table(head, body) + _source(result, path)


def ablation(path: Path, name: str) -> str:
    """One table of the ablations, below it its caption, and below a group's first one the picture."""
    result = json.loads(path.read_text())
    group, make = ABLATIONS[name]
    picture = figure_path(path, group).relative_to(ROOT)
    shown = f"\n![{name}, on {result['model']}]({picture})\n" if name == group else ""
    return f"{_table(*make(result['rows']))}\n{caption(result, group)}\n{shown}{_source(result, path)}"


def ablation_verdicts(path: Path) -> str:
    """The paper's claims beside what was measured."""
    result = json.loads(path.read_text())
    found = [f"- {claim}. On {result['model']}: {told}; {says}.\n" for claim, told, says in verdicts(result["rows"])]
    return "".join(found) + _source(result, path)


def table1(path: Path) -> str:
    """Dense, YOPO and InfoPrune side by side, workload by workload, with the paper's own rows."""
    result = json.loads(path.read_text())
    return markdown(result) + _source(result, path)


def table1_short(path: Path) -> str:
    """The columns of the first workload that the README shows."""
    result = json.loads(path.read_text())
    first, *_ = by_workload(result["rows"]).values()
    shown = ("TFLOP", "TFLOP as YOPO counts", "tower ms", "prefill ms", "first token ms", "times as fast")
    found = [dict(zip(HEADS, cells(row, base_of(first)), strict=True)) for row in first]
    body = [[f"{row['method']}, {row['execution']}, {row['engine']}", *(row[name] for name in shown)] for row in found]
    return _table(["", *shown], body) + _source(result, path)


def table1_profiles(path: Path) -> str:
    """Where the time of the dense model and of YOPO as released goes."""
    result = json.loads(path.read_text())
    parts = [f"**{name}**\n\n{profile_table(operators)}" for name, operators in result["profiles"].items()]
    return "\n".join(parts) + _source(result, path)


def table1_goals(path: Path) -> str:
    """What Table 1 was expected to show, and what it shows."""
    result = json.loads(path.read_text())
    body = [[goal["name"], f"{goal['reached']:.2f}×", "yes" if goal["met"] else "no"] for goal in result["goals"]]
    return _table(["to the first token", "measured", "as expected"], body) + _source(result, path)


def _headline(group: str, name: str) -> bool:
    """The rows that the README shows."""
    if group == "FFN only":
        return name in ("neurons 192", "rrr 128", "taylor 128, mean bias")
    return (
        name == "dense" or group == "paper" or group.endswith("neurons") or (group == "heads 50 %" and name == "zeta")
    )


# marker -> (result file, how it becomes a table)
TABLES: dict[str, tuple[str, Callable[[Path], str]]] = {
    "headline": ("tiny_vlm", lambda path: _tiny_vlm(path, _headline)),
    "everything": ("tiny_vlm", lambda path: _tiny_vlm(path, lambda group, name: True)),
    "baselines": ("tiny_vlm", lambda path: _tiny_vlm(path, lambda group, name: group == "baselines")),
    "fullsize": ("fullsize_tower", fullsize),
    "cpu": ("cpu_tower", cpu_tower),
    "cpu goals": ("cpu_tower", cpu_goals),
    "int8": ("int8", int8),
    "int8 speed": ("int8", int8_speed),
    "ablations: verdicts": ("ablations", ablation_verdicts),
    **{f"ablations: {name}": ("ablations", partial(ablation, name=name)) for name in ABLATIONS},
    "table1 tiny": ("table1-tiny", table1),
    "table1 2b": ("table1-2b", table1),
    "table1 short": ("table1-2b", table1_short),
    "table1 goals": ("table1-2b", table1_goals),
    "table1 profiles": ("table1-2b", table1_profiles),
}


def filled(text: str, machine: str, folder: Path) -> str:
    """A text of this folder with every table between its markers written anew."""
    to_root = "../" * len(folder.relative_to(ROOT).parts)
    for name, (file, make) in TABLES.items():
        path = RESULTS / machine / f"{file}.json"
        opening, closing = f"<!-- table: {name} -->", f"<!-- end: {name} -->"
        if opening not in text:
            continue
        if not path.exists():
            raise InfopruneError(f"there is no {path}; run make bench first")
        before, rest = text.split(opening, 1)
        table = make(path).replace("](benchmarks/", f"]({to_root}benchmarks/")
        text = f"{before}{opening}\n{table}{closing}{rest.split(closing, 1)[1]}"
    return text


def _table1_figure(path: Path, out: Path) -> None:
    """The stages of the first workload's rows."""
    first, *_ = by_workload(json.loads(path.read_text())["rows"]).values()
    figure = stage_bars(first)
    write_file(out, lambda aside: figure.savefig(aside, format="png"))


def main(
    machine: Annotated[str, typer.Option(help="Which results/<machine> the texts show.")],
    check: Annotated[bool, typer.Option("--check", help="Only compare; exit 1 if a text is out of date.")] = False,
) -> None:
    """Write the texts' tables from result files."""
    for path in TEXTS:
        text = path.read_text()
        new = filled(text, machine, path.parent)
        if check and new != text:
            typer.echo(f"{path} is out of date; run make report")
            raise SystemExit(1)
        if not check:
            write_text(path, new)
    if not check:
        overview_figure(json.loads((RESULTS / machine / "demo.json").read_text()), ROOT / "docs" / "overview.png")
        _table1_figure(RESULTS / machine / "table1-2b.json", ROOT / "docs" / "table1.png")


if __name__ == "__main__":
    typer.run(main)
