"""Programs that measure: `python -m benchmarks.speed`."""
