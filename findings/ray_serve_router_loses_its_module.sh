#!/usr/bin/env bash
# Ray Serve 2.60.0 gives a custom request router copies of its module's globals, even where that module can be imported.
#
# Versions: ray[serve] 2.60.0 with pydantic 2.14.3, fastapi 0.136.3, starlette 1.10.0.
#
# Expected: a class of a module that can be imported is pickled as its name, by Ray as by Python. The process that routes imports
#   the module. All code of that process sees what the router keeps in the module's globals. A lock among them does no harm.
# Instead: `RequestRouterConfig` pickles the class by value, with the globals that its methods use. The process that routes gets
#   a different class from the one it imports. What the router keeps in a global goes into a copy, without any error. A lock among
#   the globals makes the configuration fail. The same happens to an autoscaling policy. Globals of other modules stay shared.
# Hurt: authors of routers that share state with the code that sends the requests: requests in flight, replicas that failed,
#   sessions that stay on a replica. Tests that import the router and call it find nothing.
#
# As in Serve, one process makes the configuration of a deployment and another one loads the router from its bytes. That needs no
# cluster.
#
# Seen:
#   Ray's own pickle of the class: its name
#   a router beside a lock: cannot pickle '_thread.lock' object
#   the class that Serve loads is the imported one: False
#   the policy that Serve loads is the imported one: False
#   calls noted in the imported module: 0
#   calls noted in the class' own copy: 1
#   calls noted in another module: 1
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  "ray[serve]==2.60.0" pydantic==2.14.3 fastapi==0.136.3 starlette==1.10.0
cd "$folder"

cat >elsewhere.py <<'PYTHON'
ROUTED = []
PYTHON

cat >router.py <<'PYTHON'
import elsewhere
from ray.serve.request_router import RequestRouter

ROUTED = []


class NotingRouter(RequestRouter):
    async def choose_replicas(self, candidate_replicas, pending_request=None):
        ROUTED.append(pending_request)
        elsewhere.ROUTED.append(pending_request)
        return [candidate_replicas]


def scale(contexts):
    """An autoscaling policy that wants nothing changed."""
    ROUTED.append(contexts)
    return {}, {}
PYTHON

cat >locked.py <<'PYTHON'
import threading

from ray.serve.request_router import RequestRouter

LOCK = threading.Lock()


class LockingRouter(RequestRouter):
    async def choose_replicas(self, candidate_replicas, pending_request=None):
        with LOCK:
            return [candidate_replicas]
PYTHON

cat >deploy.py <<'PYTHON'
import sys
from pathlib import Path

import router
from ray import cloudpickle, serve
from ray.serve.config import AutoscalingConfig, RequestRouterConfig

by_name = b"choose_replicas" not in cloudpickle.dumps(router.NotingRouter)
print(f"Ray's own pickle of the class: {'its name' if by_name else 'a copy'}")


@serve.deployment(
    request_router_config=RequestRouterConfig(request_router_class=router.NotingRouter),
    autoscaling_config=AutoscalingConfig(policy={"policy_function": "router:scale"}),
)
class Model:
    pass


Path("configuration").write_bytes(Model._deployment_config.to_proto_bytes())
try:
    import locked

    RequestRouterConfig(request_router_class=locked.LockingRouter)
    refused = None
except TypeError as error:
    refused = str(error)
print(f"a router beside a lock: {refused}")
sys.exit(0 if by_name and "lock" in (refused or "") else "different from what was seen")
PYTHON

cat >route.py <<'PYTHON'
import asyncio
import sys
from pathlib import Path

import elsewhere
import router
from ray.serve._private.config import DeploymentConfig

config = DeploymentConfig.from_proto_bytes(Path("configuration").read_bytes())
loaded = config.request_router_config.get_request_router_class()
asyncio.run(loaded.choose_replicas(None, ["replica"], "request"))
policy = config.autoscaling_config.policy.get_policy()
policy({})
found = {
    "the class that Serve loads is the imported one": loaded is router.NotingRouter,
    "the policy that Serve loads is the imported one": policy is router.scale,
    "calls noted in the imported module": len(router.ROUTED),
    "calls noted in the class' own copy": len(loaded.choose_replicas.__globals__["ROUTED"]),
    "calls noted in another module": len(elsewhere.ROUTED),
}
for what, value in found.items():
    print(f"{what}: {value}")
sys.exit(0 if list(found.values()) == [False, False, 0, 1, 1] else "different from what was seen")
PYTHON

venv/bin/python deploy.py
venv/bin/python route.py
