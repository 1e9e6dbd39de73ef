"""The GPU that is measured: its name, its driver and clocks, its chip's peak rates."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from infoprune_rt.errors import InfopruneError
from infoprune_rt.ops import triton_backend

if TYPE_CHECKING:
    from infoprune_kernels.roofline import Chip

# What nvidia-smi calls what is recorded.
_QUERIES = {
    "driver": "driver_version",
    "sm_mhz": "clocks.sm",
    "sm_mhz_at_most": "clocks.max.sm",
    "memory_mhz": "clocks.mem",
    "temperature_c": "temperature.gpu",
    "power_w": "power.draw",
    "power_limit_w": "power.limit",
    "compute_mode": "compute_mode",
}


def require_gpu() -> torch.device:
    """The current CUDA device. Raises InfopruneError, one sentence, where there is none or Triton is missing."""
    if not torch.cuda.is_available():
        raise InfopruneError("this measures a GPU, and PyTorch finds no CUDA device here; run it on a machine with one")
    if why := triton_backend.missing():
        raise InfopruneError(f"this measures the Triton kernels, but {why}; add kernels/ to PYTHONPATH (make gpu does)")
    return torch.device("cuda", torch.cuda.current_device())


def folder_name(device: torch.device) -> str:
    """Of the folder that holds this device's results: "NVIDIA H200" is nvidia-h200."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def chip_of(name: str) -> Chip | None:
    """The peak rates of the chip that a device's name names; None where none are known. An A100 has the A800's."""
    from infoprune_kernels.roofline import CHIPS

    name = name.replace("A100", "A800")
    return next((chip for chip in CHIPS if chip.name in name), None)


def describe(device: torch.device) -> dict[str, Any]:
    """What a result file records of the device: sizes and versions, and its state just now."""
    if device.type != "cuda":
        return {"name": device.type}
    found = torch.cuda.get_device_properties(device)
    return {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "memory_bytes": found.total_memory,
        "l2_bytes": found.L2_cache_size,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        **state(device),
    }


def state(device: torch.device) -> dict[str, Any]:
    """Driver, clocks, temperature and power now, by NVML or nvidia-smi; None for what neither tells."""
    if device.type != "cuda":
        return {}
    for ask in (_by_nvml, _by_nvidia_smi):
        try:
            return ask(f"GPU-{torch.cuda.get_device_properties(device).uuid}")
        except Exception:  # a library or a tool that is absent, or a machine that forbids it: the next one, or nothing
            continue
    return dict.fromkeys(_QUERIES)


def _by_nvml(uuid: str) -> dict[str, Any]:
    import pynvml

    pynvml.nvmlInit()
    try:
        gpu = pynvml.nvmlDeviceGetHandleByUUID(uuid)
        driver = pynvml.nvmlSystemGetDriverVersion()
        temperature = pynvml.NVML_TEMPERATURE_GPU
        asked: dict[str, Callable[[], Any]] = {
            "driver": lambda: driver.decode() if isinstance(driver, bytes) else driver,
            "sm_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_SM),
            "sm_mhz_at_most": lambda: pynvml.nvmlDeviceGetMaxClockInfo(gpu, pynvml.NVML_CLOCK_SM),
            "memory_mhz": lambda: pynvml.nvmlDeviceGetClockInfo(gpu, pynvml.NVML_CLOCK_MEM),
            "temperature_c": lambda: pynvml.nvmlDeviceGetTemperature(gpu, temperature),
            "power_w": lambda: pynvml.nvmlDeviceGetPowerUsage(gpu) / 1000,
            "power_limit_w": lambda: pynvml.nvmlDeviceGetPowerManagementLimit(gpu) / 1000,
            "compute_mode": lambda: pynvml.nvmlDeviceGetComputeMode(gpu),
        }
        return {name: _or_none(ask, pynvml.NVMLError) for name, ask in asked.items()}
    finally:
        pynvml.nvmlShutdown()


def _or_none(ask: Callable[[], Any], error: type[Exception]) -> Any:
    try:
        return ask()
    except error:
        return None


def _by_nvidia_smi(uuid: str) -> dict[str, Any]:
    program = shutil.which("nvidia-smi") or "nvidia-smi"
    command = [program, f"--id={uuid}", f"--query-gpu={','.join(_QUERIES.values())}", "--format=csv,noheader,nounits"]
    told = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    return {name: _number(text.strip()) for name, text in zip(_QUERIES, told.split(","), strict=True)}


def _number(text: str) -> float | str | None:
    """nvidia-smi's way to say that it does not know is a word in brackets."""
    if text.startswith("["):
        return None
    try:
        return float(text)
    except ValueError:
        return text


def processes_may_share(device: torch.device) -> bool:
    """Whether several processes can use the device at once, as far as it tells (its compute mode)."""
    return state(device).get("compute_mode") in (None, 0, "Default")
