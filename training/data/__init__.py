"""Data set -> levels -> batches -> views."""
