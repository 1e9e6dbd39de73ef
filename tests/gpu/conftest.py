"""These tests need a CUDA device, and are skipped where there is none; ``make gpu`` runs them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from on_gpu import DEVICE

from infoprune_rt.ops import triton_backend


@pytest.fixture(autouse=True)
def _poisoned_outputs() -> Iterator[None]:
    """Memory that torch hands out holds NaN, so that what a kernel leaves unwritten is seen.

    What PyTorch's own operators say of being not deterministic is not asked here.
    """
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty(2, device=DEVICE).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def _nothing_demanded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test demands what it wants; nothing has failed in this process."""
    monkeypatch.delenv(triton_backend.VARIABLE, raising=False)
    monkeypatch.setattr(triton_backend, "_failed", set())
    monkeypatch.setattr(triton_backend, "_told", set())
