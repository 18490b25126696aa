"""The replicas as Serve's controller knows them: as metrics, and as targets to scrape."""

import asyncio
import json
import time
from collections import Counter
from typing import Any

import ray
from ray.experimental import internal_kv
from ray.serve._private.common import ReplicaState
from ray.serve._private.constants import SERVE_CONTROLLER_NAME, SERVE_NAMESPACE

from deployments.observability import metrics
from deployments.observability.exposition import NAMESPACE, logger

STATES = ("STARTING", "RUNNING", "UPDATING", "RECOVERING", "STOPPING")
POLL_S = 2.0
ANSWER_S = 10.0
FORGET_S = 600.0


class Replicas:
    """The replicas that Serve's controller reports: kept as metrics, and as targets to scrape."""

    def __init__(self) -> None:
        self._states: dict[str, str] = {}
        self._deployments: dict[str, dict[str, Any]] = {}
        self._task: asyncio.Task[None] | None = None

    def watch(self) -> None:
        """Start polling the controller."""
        self._task = asyncio.create_task(self._poll())

    async def _poll(self) -> None:
        while True:
            try:
                controller = await asyncio.to_thread(ray.get_actor, SERVE_CONTROLLER_NAME, SERVE_NAMESPACE)
                self.update(await asyncio.wait_for(controller.get_serve_instance_details.remote(), ANSWER_S))
                metrics.CLUSTER_GPUS.labels().set((await asyncio.to_thread(ray.cluster_resources)).get("GPU", 0))
            except (TimeoutError, ValueError, ray.exceptions.RayError) as error:
                logger.warning("Serve's controller does not report its replicas (%s)", type(error).__name__)
            await asyncio.sleep(POLL_S)

    def update(self, details: dict[str, Any]) -> None:
        """Update metrics and targets from the controller's report (`ServeInstanceDetails` of Ray 2.60.0, as a dictionary)."""
        states: dict[str, str] = {}
        for application in details["applications"].values():
            for name, deployment in application["deployments"].items():
                replicas = {replica["replica_id"]: ReplicaState(replica["state"]).value for replica in deployment["replicas"]}
                count = Counter(replicas.values())
                for state in STATES:
                    metrics.REPLICAS.labels(name, state).set(count[state])
                metrics.REPLICAS_TARGET.labels(name).set(deployment["target_num_replicas"])
                self._deployments[name] = deployment
                states |= replicas
        self._states = states

    def of(self, deployment: str) -> dict[str, Any] | None:
        """Return the controller's last report of a deployment (a `DeploymentDetails`); None before the first one."""
        return self._deployments.get(deployment)

    def targets(self) -> list[dict[str, Any]]:
        """Return the processes to scrape, in the format of Prometheus' `http_sd_configs`."""
        found = []
        for key in internal_kv._internal_kv_list("", namespace=NAMESPACE):
            name = key.decode()
            entry = json.loads(internal_kv._internal_kv_get(key, namespace=NAMESPACE) or "{}")
            if name in self._states or name == metrics.CONTROLLER:
                found.append({"targets": entry["targets"], "labels": entry["labels"]})
            elif self._states and time.time() - entry.get("since", 0) > FORGET_S:
                internal_kv._internal_kv_del(key, namespace=NAMESPACE)
        return found
