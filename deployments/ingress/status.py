"""The route `/status`: which LLM replicas there are, what they do, what requests wait for, and why there are that many replicas."""

import asyncio
import time
from typing import Any

from ray.exceptions import RayError
from ray.serve._private.common import ReplicaState
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.autoscaling import scaler
from deployments.observability.discovery import Replicas
from deployments.observability.progress import noted

LOAD_S = 2.0


class Status:
    """What an ingress knows of the LLM replicas: from Serve's controller, the autoscaling policy, and the replicas themselves."""

    def __init__(self, llm: DeploymentHandle, replicas: Replicas, autoscaling: bool) -> None:
        self._llm = llm
        self._replicas = replicas
        self._autoscaling = autoscaling

    async def report(self, waiting: int, left_s: dict[str, float] | None = None) -> dict[str, Any]:
        """Return the status.

        `waiting` is the number of this ingress's requests that have no replica, `left_s` how long its replies still take.
        """
        loads, scaling = await asyncio.gather(self._loads(), self._scaling())
        expected_s = scaling["startup_s"] if scaling else None
        details = self._replicas.of("LLM") or {"target_num_replicas": None, "replicas": []}
        starting = [replica["replica_id"] for replica in details["replicas"] if replica["state"] == "STARTING"]
        doing = await asyncio.to_thread(noted, starting)
        replicas = [_summary(replica, loads, expected_s, doing) for replica in details["replicas"]]
        fleet = {"target": details["target_num_replicas"], "replicas": replicas}
        return fleet | {"waiting": waiting, "left_s": left_s, "autoscaling": scaling}

    def running(self) -> bool:
        """Return whether a replica may be up, as far as is known. Calling one when there is none would make Serve start one."""
        details = self._replicas.of("LLM")
        if details is None:
            return not self._autoscaling
        return not self._autoscaling or any(replica["state"] == "RUNNING" for replica in details["replicas"])

    def asleep(self) -> bool:
        """Return whether there is no replica because there are no requests."""
        details = self._replicas.of("LLM")
        return self._autoscaling and details is not None and details["target_num_replicas"] == 0

    async def waits_for(self) -> str:
        """Return what a request that finds no replica waits for."""
        details = self._replicas.of("LLM")
        starting = [replica for replica in (details or {"replicas": []})["replicas"] if replica["state"] == "STARTING"]
        if not starting:
            return "no LLM replica is up" + "; a request starts one" * self.asleep()
        since_s = time.time() - min(replica["start_time_s"] for replica in starting)
        scaling = await self._scaling()
        expected = f" of about {scaling['startup_s']:.0f}" if scaling else ""
        return f"no LLM replica is up; {len(starting)} starting, for {since_s:.0f}{expected} s"

    async def _loads(self) -> dict[str, dict[str, Any]]:
        """Return the states that the running replicas report, by id."""
        if not self.running():
            return {}
        try:
            states = await self._llm.broadcast("state").results_async(timeout_s=LOAD_S, return_exceptions=True)
        except (TimeoutError, RayError, RayServeException):
            return {}
        return {state["id"]: state for state in states if isinstance(state, dict)}

    async def _scaling(self) -> dict[str, Any] | None:
        return await asyncio.to_thread(scaler.status) if self._autoscaling else None


def _summary(
    replica: dict[str, Any], loads: dict[str, dict[str, Any]], expected_s: float | None, doing: dict[str, str]
) -> dict[str, Any]:
    """Return what clients see of a replica (a `ReplicaDetails` of Ray 2.60.0)."""
    summary = {"id": replica["replica_id"], "state": ReplicaState(replica["state"]).value, "node": replica.get("node_ip")}
    if replica["state"] == "STARTING":
        for_s = round(time.time() - replica["start_time_s"], 1)
        summary["starting"] = {"for_s": for_s, "expected_s": expected_s, "doing": doing.get(replica["replica_id"])}
    load = loads.get(replica["replica_id"])
    return summary | {"load": {name: load[name] for name in ("open", "running", "waiting", "served")} if load else None}
