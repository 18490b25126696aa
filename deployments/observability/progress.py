"""What a starting replica is doing: kept in Ray's key-value store, where the ingress' route `/status` reads it."""

from ray import serve
from ray.experimental import internal_kv

NAMESPACE = "satori-starting"


def note(doing: str) -> None:
    """Store what this starting replica is doing now, for `/status`."""
    internal_kv._internal_kv_put(serve.get_replica_context().replica_id.unique_id, doing, namespace=NAMESPACE)


def noted(replica_ids: list[str]) -> dict[str, str]:
    """Return what these replicas are doing, by id; a replica that has stored nothing is left out."""
    found = {name: internal_kv._internal_kv_get(name, namespace=NAMESPACE) for name in replica_ids}
    return {name: doing.decode() for name, doing in found.items() if doing}
