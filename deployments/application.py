"""The application builder behind `serve run deployments.config`: settings in, the graph of deployments out.

Only this module knows both the ingress and the replica. It runs in the driver and imports neither vLLM nor torch.
"""

import os
import warnings
from typing import Any

import click
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy, HTTPOptions, RequestRouterConfig
from ray.serve.schema import LoggingConfig

from deployments import keys, logs
from deployments import settings as settings_module
from deployments.errors import SettingsError
from deployments.ingress import Ingress
from deployments.replica import LLM
from deployments.settings import Settings
from deployments.web import WebUI

logger = logs.logger("application")

LOOK_S = 0.2
"""How often a replica that leaves looks whether it has requests left; Serve's default of 2 s is what an idle one takes."""
HEALTH_PERIOD_S, HEALTH_TIMEOUT_S = 2.0, 10.0
"""How often Serve asks an LLM replica for its health, and waits for it. It replaces one that fails three times in a row: with its
defaults (10 s, 30 s) half a minute after the engine died."""
UNBOUNDED = 10_000
"""Calls that Serve gives an LLM replica at a time where no bound is set; its default is 5."""
REPORT_S, LOOK_BACK_S = 2.0, 3.0
"""How often replicas and ingresses tell the autoscaler of their load; over which Serve averages the requests that wait at the
ingresses."""


def config(arguments: dict[str, Any]) -> Application:
    """Build the application from `key=value` arguments of `serve run`, or the `args` of a Serve config file.

    Raises click.ClickException, which the `serve` command prints as one message, when a setting is wrong.
    """
    try:
        return build(settings_module.load(arguments))
    except SettingsError as error:
        raise click.ClickException(f"wrong settings\n{error}") from error


def build(settings: Settings, replica: type[LLM] = LLM) -> Application:
    """Return the graph: Ingress -> LLM, and Ingress -> UI where that is enabled.

    `replica` is the class to deploy as LLM; tests pass one with scripted tokens. Serve spreads the replicas of each over the nodes
    that have what they ask for (its strategy SPREAD); only LLM replicas ask for GPUs. Raises SettingsError when API keys are wrong.
    """
    listen(settings)
    # Looked up here for all ingress replicas: on another host the variable may not be there, and nothing would be asked for.
    api_keys = os.environ.get(keys.ENVIRONMENT)
    if warning := keys.exposed(settings.http, guarded=keys.open_store(settings.access.keys, api_keys) is not None):
        logger.warning("\n".join(warning))
    quiet = LoggingConfig(enable_access_log=False)
    llm = serve.deployment(
        replica,
        name="LLM",
        logging_config=quiet,
        graceful_shutdown_wait_loop_s=LOOK_S,
        **_number(settings),
        max_ongoing_requests=settings.llm.max_ongoing_requests or UNBOUNDED,
        graceful_shutdown_timeout_s=settings.llm.graceful_shutdown_timeout_s,
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        ray_actor_options={
            "num_cpus": settings.llm.num_cpus,
            "num_gpus": settings.llm.num_gpus,
            "accelerator_type": settings.llm.accelerator_type,
        },
        request_router_config=RequestRouterConfig(request_router_class="deployments.routing:LeastRequestsRouter"),
    )
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        name="Ingress",
        logging_config=quiet,
        graceful_shutdown_wait_loop_s=LOOK_S,
        num_replicas=settings.ingress.num_replicas,
        max_ongoing_requests=settings.ingress.max_ongoing_requests,
        graceful_shutdown_timeout_s=settings.ingress.graceful_shutdown_timeout_s,
        # Serve's config files know no None here (Ray 2.60.0): without a bound, it is not given.
        **({} if (most := settings.ingress.max_replicas_per_node) is None else {"max_replicas_per_node": most}),
        ray_actor_options={"num_cpus": settings.ingress.num_cpus, "label_selector": settings.ingress.label_selector},
    )
    if not settings.ui.enabled:
        return ingress.bind(settings, llm.bind(settings), None, api_keys)
    ui = serve.deployment(
        WebUI,
        name="UI",
        logging_config=quiet,
        graceful_shutdown_wait_loop_s=LOOK_S,
        num_replicas=settings.ui.num_replicas,
        max_ongoing_requests=settings.ui.max_ongoing_requests,
        ray_actor_options={"num_cpus": settings.ui.num_cpus, "label_selector": settings.ui.label_selector},
        request_router_config=RequestRouterConfig(request_router_class="deployments.routing:StickyRouter"),
    )
    return ingress.bind(settings, llm.bind(settings), ui.bind(settings), api_keys)


def _number(settings: Settings) -> dict[str, Any]:
    """Return the options of `serve.deployment` for how many LLM replicas there are.

    Serve's own delays and smoothing are off: the policy knows when to wait.
    """
    wanted = settings.autoscaling
    if not wanted.enabled:
        return {"num_replicas": settings.llm.num_replicas}
    with warnings.catch_warnings():
        # The interval is deprecated in favour of environment variables that nothing reads (Ray 2.60.0): without it, it is 10 s.
        warnings.simplefilter("ignore", DeprecationWarning)
        autoscaling = AutoscalingConfig(
            min_replicas=wanted.min_replicas,
            initial_replicas=min(max(settings.llm.num_replicas, wanted.min_replicas), wanted.max_replicas),
            max_replicas=wanted.max_replicas,
            upscale_delay_s=0,
            downscale_delay_s=0,
            metrics_interval_s=REPORT_S,
            look_back_period_s=LOOK_BACK_S,
            policy=AutoscalingPolicy(
                policy_function="deployments.scaler:Scaler", policy_kwargs={"settings": settings.model_dump(mode="json")}
            ),
        )
    return {"autoscaling_config": autoscaling}


def listen(settings: Settings) -> None:
    """Make `http.host` and `http.port` what `serve run` starts its proxy with.

    `serve run` takes no HTTP options with an import path, and in HAProxy mode its default is every interface (Ray 2.60.0,
    ray/serve/_private/constants.py). Goes when `serve run` has options for host and port.
    """
    HTTPOptions.model_fields["host"].default = settings.http.host
    HTTPOptions.model_fields["port"].default = settings.http.port
    HTTPOptions.model_rebuild(force=True)
