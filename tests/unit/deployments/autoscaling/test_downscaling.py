"""Which replicas leave."""

from types import SimpleNamespace

import pytest
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.config import ReplicaConfig
from ray.serve._private.deployment_scheduler import DeploymentScheduler, SpreadDeploymentSchedulingPolicy

from deployments.autoscaling import downscaling


def test_the_emptiest_leave_and_of_equals_those_that_serve_chose() -> None:
    loads = {"a": 9.0, "b": 40.0, "c": 10.0, "d": 2.0}
    assert downscaling.emptiest([*loads, "silent"], {"c"}, 1, loads.get) == {"d"}
    assert downscaling.emptiest([*loads, "silent"], {"c", "b"}, 2, loads.get) == {"d", "c"}
    assert downscaling.emptiest([*loads, "silent"], {"silent"}, 4, loads.get) == set(loads)


def test_serve_stops_the_emptiest(monkeypatch: pytest.MonkeyPatch) -> None:
    """With Serve's own scheduler; what has not started still goes first, and other deployments are Serve's own affair."""
    name = "_get_replicas_to_stop"
    monkeypatch.setattr(DeploymentScheduler, name, getattr(DeploymentScheduler, name))  # is put back afterwards
    nodes = SimpleNamespace(get_node_labels=lambda node: {})
    scheduler = DeploymentScheduler(nodes, "head", create_placement_group_fn=lambda _: None)  # type: ignore[arg-type]
    replicas: dict[str, list[ReplicaID]] = {}
    for deployment in ("LLM", "Ingress"):
        wanted = DeploymentID(deployment, "default")
        scheduler.on_deployment_created(wanted, SpreadDeploymentSchedulingPolicy())
        scheduler.on_deployment_deployed(wanted, ReplicaConfig.create(lambda: None))
        replicas[deployment] = [ReplicaID(str(number), wanted) for number in range(4)]
        for replica in replicas[deployment][:3]:
            scheduler.on_replica_running(replica, "node")
    llm = replicas["LLM"]
    downscaling.install(dict(zip(llm, (9.0, 1.0, 40.0), strict=False)).get)
    downscaling.install(dict(zip(llm, (9.0, 1.0, 40.0), strict=False)).get)  # the application is deployed again
    stopped = [scheduler._get_replicas_to_stop(of[0].deployment_id, count) for of in replicas.values() for count in (1, 2)]
    assert stopped[:2] == [{llm[1]}, {llm[1], llm[0]}]
    assert stopped[2:] == [{replicas["Ingress"][2]}, set(replicas["Ingress"][1:3])]
    scheduler._launching_replicas[llm[0].deployment_id][llm[3]] = None  # type: ignore[assignment]
    assert scheduler._get_replicas_to_stop(llm[0].deployment_id, 2) == {llm[3], llm[1]}
