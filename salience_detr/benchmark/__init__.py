"""Timing and profiling, of our model and of other detectors."""
