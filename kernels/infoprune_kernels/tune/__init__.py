"""Tuning: times tiles on the device at hand and writes its table. ``python -m infoprune_kernels.tune``."""
