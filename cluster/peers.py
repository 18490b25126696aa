"""What others serve a model with, for the load bench: `python -m cluster.bench --peers`.

    ray-llm          ray.serve.llm as it comes: Python proxy, tokens through Serve's streams in batches of 50 ms
    ray-llm-direct   ray.serve.llm with direct streaming, HAProxy and throughput mode
    router           vLLM's own router (`vllm-router`, round robin) before one bare vLLM API server

They run from an environment of their own (`dev/peers.py` makes it), as this project depends on none of them: that of the project,
seen through a path file, and what the peers need beside it. So the engine is the same everywhere.
"""

import os
import sys
import uuid
from typing import Any

from ray.serve import Application

from deployments import settings as settings_module
from deployments.application import UNBOUNDED, listen
from deployments.draining import RUN
from deployments.engine import server_words
from deployments.settings import ROOT, Settings

PYTHON = ROOT / ".run" / "peers" / "bin" / "python"
KINDS = ("ray-llm", "ray-llm-direct", "router")
BEHIND_PORT = 8100
DIRECT = {"RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}


def bare(settings: Settings, port: int) -> list[str]:
    """Return the command of vLLM's own API server."""
    words = [*server_words(settings), "--host", "127.0.0.1", "--port", str(port), "--disable-uvicorn-access-log"]
    return [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", *words]


def commands(kind: str, settings: Settings, arguments: list[str]) -> list[list[str]]:
    """Return the commands of a peer's processes; the last one listens on `http.port`."""
    if kind == "router":
        router = [str(PYTHON.with_name("vllm-router")), "--worker-urls", f"http://127.0.0.1:{BEHIND_PORT}"]
        listens = [
            "--host",
            "127.0.0.1",
            "--port",
            str(settings.http.port),
            "--prometheus-port",
            str(BEHIND_PORT + 1),
            "--log-level",
            "error",
        ]
        return [bare(settings, BEHIND_PORT), [*router, *listens, "--policy", "round_robin"]]
    return [[str(PYTHON), "-m", "ray.serve.scripts", "run", "cluster.peers:application", *arguments]]


def environment(kind: str, settings: Settings) -> dict[str, str]:
    """Return a peer's environment; it carries the mark by which the bench finds all its processes."""
    own = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING", "RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": "local"}
    own |= {RUN: uuid.uuid4().hex, "PYTHONPATH": str(ROOT)}
    return dict(os.environ) | own | settings.llm.env | (DIRECT if kind == "ray-llm-direct" else {})


def application(arguments: dict[str, Any]) -> Application:
    """Return ray.serve.llm's application for the same settings, one replica, in the peers' environment."""
    from ray.serve.llm import LLMConfig, build_openai_app

    settings = settings_module.load(arguments)
    listen(settings)
    config = LLMConfig(
        model_loading_config={"model_id": settings.served_model_name, "model_source": settings.model},
        engine_kwargs=settings.engine,
        accelerator_config=None if settings.llm.num_gpus else {"kind": "cpu"},
        placement_group_config={"bundles": [{"CPU": settings.llm.num_cpus, "GPU": settings.llm.num_gpus}]},
        deployment_config={
            "num_replicas": 1,
            "max_ongoing_requests": settings.llm.max_ongoing_requests or UNBOUNDED,
            "ray_actor_options": {"num_cpus": 0},  # its CPUs are the bundle's
        },
        runtime_env={"env_vars": settings.llm.env},
    )
    if DIRECT.items() <= os.environ.items():  # the LLM replica is the ingress
        return build_openai_app({"llm_configs": [config]})
    ingress = {"num_replicas": settings.ingress.num_replicas, "ray_actor_options": {"num_cpus": settings.ingress.num_cpus}}
    return build_openai_app({"llm_configs": [config], "ingress_deployment_config": ingress})
