"""Metrics, traces, logs, and where they are found."""
