"""What other engines are given is the tower itself; what they answer is its answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from bench_towers import BLOCKS, RAGGED, small_subject, small_tower
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from infoprune_rt.benchmarking.cpu_tower import peers
from infoprune_rt.benchmarking.cpu_tower.cases import Subject, tower_flops
from infoprune_rt.benchmarking.cpu_tower.export import plain_module
from infoprune_rt.benchmarking.cpu_tower.measuring import relative_error
from infoprune_rt.runtime.blocks import block_specs
from infoprune_rt.towers import adapter_by_name


@torch.no_grad()
def test_the_exported_graph_is_the_tower_without_our_operators() -> None:
    tower = small_tower()
    pixels, grid = RAGGED.inputs()
    module = plain_module(tower, pixels, grid)
    targets = {str(node.target) for node in module.graph.nodes}
    assert not [target for target in targets if "infoprune." in target]
    fresh = torch.randn_like(pixels)  # not what was traced
    torch.testing.assert_close(module(fresh), tower(fresh, grid).pooler_output, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_flops_are_what_pytorch_counts() -> None:
    tower = small_tower()
    pixels, grid = RAGGED.inputs()
    module = plain_module(tower, pixels, grid)
    # The counter knows the attention core only as the two products that the "math" form spells out.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(pixels)
    specs = block_specs(BLOCKS, adapter_by_name("qwen2_vl").shape(tower.config))
    assert tower_flops(specs, tower.config, RAGGED.lengths) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("build", "needs", "tolerance"),
    [
        (peers.onnxruntime_float32, "onnxruntime", 1e-5),
        (peers.onnxruntime_int8, "onnxruntime", 0.1),
        (peers.openvino_bfloat16, "openvino", 0.03),
    ],
)
def test_peers_answer_as_the_tower(
    tmp_path: Path, build: Callable[[Subject], Callable[[], Tensor]], needs: str, tolerance: float
) -> None:
    for module in (needs, *peers.EXPORTERS):
        pytest.importorskip(module)
    subject = small_subject(tmp_path)
    with torch.no_grad():
        exact = subject.compact(subject.pixels, subject.grid).pooler_output
        error = relative_error(build(subject)(), exact)
    assert error is not None
    assert error <= tolerance
    assert error > 0
