"""Devices by name: what is there is taken, what is not is told. Memory: as much as machine and container leave."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from infoprune_rt import hardware
from infoprune_rt.errors import InfopruneError
from infoprune_rt.hardware import named_device


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


def test_devices_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, 0)
    assert named_device("auto") == named_device("cpu") == torch.device("cpu")
    with_gpus(monkeypatch, 2)
    assert named_device("auto") == named_device("cuda") == torch.device("cuda")
    assert named_device("cuda:1") == torch.device("cuda:1")
    assert named_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "gpus", "message"),
    [
        ("gpu", 1, "unknown device 'gpu'; use auto, cpu, cuda or cuda:N"),
        ("cuda:", 1, "unknown device 'cuda:'"),
        ("meta", 1, "unknown device 'meta'"),
        ("cuda", 0, "'cuda' is not there: this machine has no GPU that this PyTorch can use"),
        ("cuda:2", 2, "'cuda:2' is not there: this machine has only cuda:0 to cuda:1"),
    ],
)
def test_devices_that_are_not(monkeypatch: pytest.MonkeyPatch, name: str, gpus: int, message: str) -> None:
    with_gpus(monkeypatch, gpus)
    with pytest.raises(InfopruneError, match=message):
        named_device(name)


GROUPS = {
    "version 2": ("0::/{}", "", "memory.max", "memory.current", "inactive_file {}\nactive_file {}"),
    "version 1": (
        "4:memory:/{}",
        "memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file {}\ntotal_active_file {}",
    ),
}


@pytest.fixture(params=GROUPS)
def limit(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets a group's limit, on a machine with 9000 kB available where this process is in the group a/b."""
    line, root, maximum, usage, statistics = GROUPS[request.param]
    files = {"meminfo": ["MemAvailable:    9000 kB"], "self/cgroup": ["7:cpu:/a", line.format("a/b")]}
    monkeypatch.setattr(hardware, "_proc", lambda name: files[name])
    monkeypatch.setattr(hardware, "CGROUPS", tmp_path)

    def write(group: str, most: object, used: int, cached: tuple[int, int] = (0, 0)) -> None:
        folder = tmp_path / root / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / maximum).write_text(f"{most}\n")
        (folder / usage).write_text(f"{used}\n")
        (folder / "memory.stat").write_text("anon 5\n" + statistics.format(*cached) + "\n")

    return write


def test_a_control_groups_limit_is_respected(limit: Callable[..., None]) -> None:
    cpu = torch.device("cpu")
    assert hardware.available_bytes(cpu) == 9000 * 1024  # no such group: a machine without limits
    limit("a/b", "max", 70)
    assert hardware.available_bytes(cpu) == 9000 * 1024
    limit("", 5000, 1000, (300, 40))  # what a container sees: its own group as the root
    assert hardware.available_bytes(cpu) == 5000 - (1000 - 340)
    limit("a", 900, 100)  # a group around this process's
    assert hardware.available_bytes(cpu) == 800
    limit("a/b", 600, 50)
    assert hardware.available_bytes(cpu) == 550
    limit("a/b", 600, 700)
    assert hardware.available_bytes(cpu) == 0
    limit("c", 1, 1)  # somebody else's
    limit("a/b", 10**9, 0)
    assert hardware.available_bytes(cpu) == 800
