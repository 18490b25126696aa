"""Samples of this process's metrics, and by how much they grow."""

from prometheus_client import REGISTRY


def value(name: str, **labels: str) -> float:
    """Return a sample's value, 0 where there is none."""
    return REGISTRY.get_sample_value(name, labels) or 0.0


class Grown:
    """How much samples have grown since this was made."""

    def __init__(self) -> None:
        self._before = {(s.name, tuple(sorted(s.labels.items()))): s.value for f in REGISTRY.collect() for s in f.samples}

    def __call__(self, name: str, **labels: str) -> float:
        return value(name, **labels) - self._before.get((name, tuple(sorted(labels.items()))), 0.0)
