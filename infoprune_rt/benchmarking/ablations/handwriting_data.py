"""What the ablations run on unless told otherwise: the shipped tiny VLM and handwriting scenes."""

from __future__ import annotations

from pathlib import Path

from infoprune_rt.benchmarking.ablations.subject import Data
from infoprune_rt.demo.handwriting import read_handwriting, write_handwriting

MODEL_NAME = "the tiny VLM"
CALIBRATION, TEST_SEED = (300, 11), 12  # as in benchmarks/tiny_vlm.py; fewer test scenes are the first of its own


def handwriting_data(folder: Path, test_scenes: int) -> Data:
    """Scenes drawn into ``folder``: from training digits to learn on, from held-out digits to test on."""
    write_handwriting(folder / "calibration", "train", *CALIBRATION)
    write_handwriting(folder / "test", "test", test_scenes, TEST_SEED)
    return Data(*(read_handwriting(folder / name) for name in ("calibration", "test")))
