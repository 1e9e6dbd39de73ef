"""The demo from end to end, with little of everything."""

from __future__ import annotations

import json

import pytest

from infoprune_rt.demo.run import DemoSize, run_demo
from infoprune_rt.errors import InfopruneError
from infoprune_rt.vlm import load_vlm

SMALL = DemoSize(calibration_scenes=40, test_scenes=15, head_steps=3, fullsize_blocks=1, repeats=1)


def test_the_demo_writes_what_it_promises(tmp_path) -> None:
    out = tmp_path / "demo-out"
    report = run_demo(out, quiet=True, size=SMALL)
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(report))
    for part in ("dense", "compact"):
        assert set(report[part]["accuracy"]) == {"vqa", "text", "relations", "overall"}
    assert report["compact"]["parameters"] < 0.4 * report["dense"]["parameters"]
    assert report["compact"]["flops"] < 0.5 * report["dense"]["flops"]
    assert report["masked_vs_compact_max_error"] < 1e-4
    assert sum(report["heads_per_block"]) == 24  # half of 8 blocks of 6
    assert report["ranks_per_block"] == [192] * 8
    full = report["fullsize"]
    assert full["speedup"] == full["dense_ms"] / full["compact_ms"]
    assert full["compact_parameters"] < full["dense_parameters"] / 4
    assert "<html" in (out / "report.html").read_text()
    assert load_vlm(out / "compact").model.visual.config.blocks[0]["ffn"] == "neurons"
    # A second run replaces the first one; a directory with other things in it is not touched.
    (out / "mine.txt").write_text("precious")
    with pytest.raises(InfopruneError, match=r"mine\.txt"):
        run_demo(out, quiet=True, size=SMALL)
    assert (out / "mine.txt").exists()
