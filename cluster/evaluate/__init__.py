"""Accuracy of a served model on benchmarks."""
