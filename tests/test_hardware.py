"""Devices by name: what is there is taken, what is not is told."""

from __future__ import annotations

import pytest
import torch

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
