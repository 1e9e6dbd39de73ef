"""The rows of the paper's own Table 1, as printed (method.md section 5): on an A800, of no stated workload."""

from __future__ import annotations

PRINTED = [
    {"method": "YOPO", "flops": 11.68e12, "latency_ms": 730.0},
    {"method": "InfoPrune", "flops": 48.02e12, "latency_ms": 328.0},
]
