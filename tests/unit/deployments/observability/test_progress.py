"""What replicas that start are doing: kept where an ingress finds it."""

from types import SimpleNamespace

import pytest
from ray import serve
from ray.experimental import internal_kv

from deployments.observability import progress


def test_what_a_replica_notes_is_found_by_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[tuple[str, str], bytes] = {}
    context = SimpleNamespace(replica_id=SimpleNamespace(unique_id="r1"))
    monkeypatch.setattr(serve, "get_replica_context", lambda: context)
    monkeypatch.setattr(
        internal_kv, "_internal_kv_put", lambda key, value, namespace: kept.update({(namespace, key): value.encode()})
    )
    monkeypatch.setattr(internal_kv, "_internal_kv_get", lambda key, namespace: kept.get((namespace, key)))
    progress.note("download")
    progress.note("load model")
    assert progress.noted(["r1", "silent"]) == {"r1": "load model"}
