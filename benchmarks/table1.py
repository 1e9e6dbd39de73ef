"""``infoprune bench table1``, with its result in benchmarks/results/<machine>/table1-<preset>.json.

Without options it measures the tiny VLM, and Qwen2-VL-2B's sizes on one COCO picture.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from infoprune_rt.benchmarking.environment import machine_name
from infoprune_rt.benchmarking.gpu.device import folder_name
from infoprune_rt.cli import main
from infoprune_rt.hardware import named_device

RESULTS = Path(__file__).parent / "results"
RECORDED = ("tiny", "2b")


def _value(options: list[str], name: str) -> str | None:
    """What an option was given, in either way of writing it."""
    joined = [option.partition("=")[2] for option in options if option.startswith(f"{name}=")]
    apart = [options[i + 1] for i, option in enumerate(options[:-1]) if option == name]
    return next(iter(joined + apart), None)


def _result(options: list[str]) -> Path:
    """Named by the machine (or its GPU) and the model."""
    device = _value(options, "--device") or "cpu"
    machine = machine_name() if device == "cpu" else folder_name(named_device(device))
    model = _value(options, "--model")
    what = Path(model).name if model else _value(options, "--preset") or RECORDED[0]
    return RESULTS / machine / f"table1-{what}.json"


if __name__ == "__main__":
    given = sys.argv[1:]
    if not given:
        runs = [[sys.executable, __file__, "--preset", name] for name in RECORDED]
        sys.exit(max([subprocess.run(run, check=False).returncode for run in runs]))
    main(["bench", "table1", "--json", str(_result(given)), *given])
