"""Benchmarks: `python -m benchmarks.speed`, `benchmarks.quality`, `benchmarks.scaling`."""
