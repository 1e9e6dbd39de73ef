"""Timing, environment record, result files."""
