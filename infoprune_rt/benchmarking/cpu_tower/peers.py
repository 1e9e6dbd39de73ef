"""Other engines on the same compact tower: OpenVINO and ONNX Runtime, each with the case's threads."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from infoprune_rt.benchmarking.cpu_tower.cases import Subject
from infoprune_rt.benchmarking.cpu_tower.export import export_onnx, quiet

EXPORTERS = ("onnx", "onnxscript")  # what PyTorch's ONNX exporter needs
HOW_TO_GET = "pip install 'infoprune-rt[bench]'"


def missing(modules: tuple[str, ...]) -> list[str]:
    """Which of these are not installed."""
    return [name for name in modules if find_spec(name) is None]


def _exported(subject: Subject) -> Path:
    """The tower's ONNX file, written once per case."""
    path = subject.folder / "tower.onnx"
    if not path.exists():
        export_onnx(subject.compact, subject.pixels, subject.grid, path)
    return path


def openvino_bfloat16(subject: Subject) -> Callable[[], Tensor]:
    """OpenVINO's CPU plugin, asked for bfloat16 (it may keep to float32 where the CPU has no bfloat16 arithmetic)."""
    import openvino

    core = openvino.Core()  # reads ONNX by itself; its converter for PyTorch gives the same model and sends telemetry
    options = {
        "INFERENCE_PRECISION_HINT": "bf16",
        "INFERENCE_NUM_THREADS": subject.case.threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
    }
    request = core.compile_model(core.read_model(_exported(subject)), "CPU", options).create_infer_request()
    pixels = subject.pixels.numpy()

    def run() -> Tensor:
        request.infer([pixels], share_inputs=True)
        return torch.from_numpy(request.get_output_tensor().data)

    return run


def onnxruntime_float32(subject: Subject) -> Callable[[], Tensor]:
    """ONNX Runtime as it comes; it has no bfloat16 on the CPU."""
    return _session(_exported(subject), subject)


def onnxruntime_int8(subject: Subject) -> Callable[[], Tensor]:
    """ONNX Runtime with every product by weights in int8: weights per channel, activations as they come."""
    return _session(_quantised(subject), subject)


def _quantised(subject: Subject) -> Path:
    import onnx
    from onnxruntime.quantization import QuantType, quant_pre_process, quantize_dynamic

    folded, path = subject.folder / "folded.onnx", subject.folder / "int8.onnx"
    with quiet():
        # Folds q, k and v out of their common weight, without which they would not be seen as weights.
        quant_pre_process(_exported(subject), folded, skip_symbolic_shape=True, skip_onnx_shape=True)
        model = onnx.load(folded)
        del model.graph.value_info[:]  # the folded weights' shapes are not what it says
        # Products of activations with activations stay in float32; int8 is for weights.
        only_weights = {"MatMulConstBOnly": True}
        quantize_dynamic(model, path, per_channel=True, weight_type=QuantType.QInt8, extra_options=only_weights)
    return path


def _session(path: Path, subject: Subject) -> Callable[[], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = subject.case.threads
    session: Any = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs = {session.get_inputs()[0].name: subject.pixels.numpy()}
    return lambda: torch.from_numpy(session.run(None, inputs)[0])
