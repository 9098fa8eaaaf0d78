"""Measurements of speed and memory; run each with `python -m training.benchmarks.NAME`."""
