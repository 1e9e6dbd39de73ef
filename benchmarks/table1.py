"""``infoprune bench table1``, with its result in benchmarks/results/<machine>/table1-<preset>.json.

Without options it measures the tiny VLM, and Qwen2-VL-2B's sizes on one COCO picture.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from infoprune_rt.benchmarking.environment import machine_name
from infoprune_rt.cli import main

RESULTS = Path(__file__).parent / "results" / machine_name()
RECORDED = ("tiny", "2b")


def _preset(options: list[str]) -> str:
    return options[options.index("--preset") + 1] if "--preset" in options[:-1] else RECORDED[0]


if __name__ == "__main__":
    given = sys.argv[1:]
    if not given:
        runs = [[sys.executable, __file__, "--preset", name] for name in RECORDED]
        sys.exit(max([subprocess.run(run, check=False).returncode for run in runs]))
    main(["bench", "table1", "--json", str(RESULTS / f"table1-{_preset(given)}.json"), *given])
