"""``infoprune bench ablations``, with its result in benchmarks/results/<machine>/ablations.json."""

from __future__ import annotations

import sys
from pathlib import Path

from infoprune_rt.benchmarking.environment import machine_name
from infoprune_rt.cli import main

RESULT = Path(__file__).parent / "results" / machine_name() / "ablations.json"

if __name__ == "__main__":
    main(["bench", "ablations", "--json", str(RESULT), *sys.argv[1:]])
