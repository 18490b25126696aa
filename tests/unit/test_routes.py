"""No route but the allowed ones, whatever vLLM makes."""

import pytest

from deployments.routes import ALLOWED
from tests.in_process import served

OURS = {"/metrics/targets", "/ready", "/status"}
CONTROL = (
    "/inference/v1/abort_requests /inference/v1/generate /scale_elastic_ep /invocations /v1/load_lora_adapter /adapters /sleep"
    " /wake_up /collective_rpc /reset_prefix_cache /update_weights /pause /abort_requests /start_profile /server_info"
).split()


async def test_only_allowed_routes_whatever_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_SERVER_DEV_MODE", "1")
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
    async with served() as server:
        assert {route.path for route in server.app.router.routes} <= ALLOWED | OURS
        assert set(server.app.openapi()["paths"]) <= ALLOWED | OURS
        for path in CONTROL:
            statuses = {(await server.http.request(method, path, json={})).status_code for method in ("GET", "POST", "DELETE")}
            assert statuses == {404}, path


async def test_every_allowed_route_is_vllms() -> None:
    """A name that vLLM changes would otherwise silently be missing."""
    async with served() as server:
        assert {route.path for route in server.app.router.routes} == ALLOWED | OURS
        assert (await server.http.get("/v1/models")).status_code == 200
        assert (await server.http.get("/metrics")).status_code == 200
        assert (await server.chat({"role": "user", "content": "1+1"})).status_code == 200
