"""Other ways to serve a model, which `python -m cluster.bench` compares with ours.

    bare             vLLM's own API server with the same model, engine arguments and environment
    ray-llm          ray.serve.llm as it comes: Python proxy, tokens through Serve's streams in batches of 50 ms
    ray-llm-direct   ray.serve.llm with direct streaming, HAProxy and throughput mode
    router           vLLM's own router (`vllm-router`, round robin) in front of one bare vLLM API server

All but bare run from an environment of their own, which `python dev/peers.py` makes, since this project depends on none of them. It
has the project's packages through a path file, and the peers' beside them. So the engine is the same everywhere.
"""

import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterable
from typing import Any

from ray.serve import Application

from cluster.bench import stack
from cluster.bench.stack import Server
from deployments import settings as settings_module
from deployments.application import UNBOUNDED, set_address
from deployments.engine.arguments import server_words
from deployments.engine.config import ENVIRONMENT
from deployments.host.run import RUN
from deployments.settings import ROOT, Settings

PYTHON = ROOT / ".run" / "peers" / "bin" / "python"
KINDS = ("ray-llm", "ray-llm-direct", "router")
BEHIND_PORT = 8100
DIRECT = {"RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}


def bare(settings: Settings, number: int = 0) -> Server:
    """Return vLLM's own API server, with a port by its number."""
    settings = stack.at_port(settings, number)
    environment = stack.environment(number) | ENVIRONMENT | settings.llm.env
    return Server("bare", settings, (_api_server(settings, settings.http.port),), environment, _ready(settings))


def peer(kind: str, settings: Settings, arguments: Iterable[str], number: int = 0) -> Server:
    """Return one of `KINDS`, with a port by its number. Its environment names a run, by which all its processes are found."""
    settings = stack.at_port(settings, number)
    port = settings.http.port
    ray = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ADDRESS": "local", RUN: uuid.uuid4().hex, "PYTHONPATH": str(ROOT)}
    environment = stack.environment(number) | ENVIRONMENT | ray | settings.llm.env | (DIRECT if kind == "ray-llm-direct" else {})
    if kind == "router":
        behind = ["--worker-urls", f"http://127.0.0.1:{BEHIND_PORT}", "--policy", "round_robin"]
        listens = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(BEHIND_PORT + 1)]
        router = [str(PYTHON.with_name("vllm-router")), *behind, *listens, "--log-level", "error"]
        commands: tuple[list[str], ...] = (_api_server(settings, BEHIND_PORT), router)
    else:
        serve = [str(PYTHON), "-m", "ray.serve.scripts", "run", "cluster.bench.peers:application"]
        commands = ([*serve, *arguments, f"http.port={port}"],)
    return Server(kind, settings, commands, environment, _ready(settings), stop=signal.SIGINT)


def _api_server(settings: Settings, port: int) -> list[str]:
    words = [*server_words(settings), "--host", "127.0.0.1", "--port", str(port), "--disable-uvicorn-access-log"]
    return [sys.executable, "-m", "vllm.entrypoints.launchers.api_server.entry", *words]


def _ready(settings: Settings) -> Callable[[], bool]:
    models = f"http://127.0.0.1:{settings.http.port}/v1/models"
    return lambda: stack.answers(models) and stack.completes(settings)


def application(arguments: dict[str, Any]) -> Application:
    """Return ray.serve.llm's application with the same settings and one replica. Runs in the peers' environment."""
    from ray.serve.llm import LLMConfig, build_openai_app

    settings = settings_module.load(arguments)
    set_address(settings)
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
