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

from deployments import settings as settings_module
from deployments.access import keys
from deployments.errors import SettingsError
from deployments.host import forked
from deployments.ingress.deployment import Ingress
from deployments.observability import logs
from deployments.patching import patch
from deployments.replica.deployment import LLM
from deployments.settings import Settings
from deployments.ui.deployment import WebUI

logger = logs.logger("application")

DRAIN_CHECK_S = 0.2
"""How often a stopping replica checks for ongoing requests. With Serve's default even an idle one takes 2 s to stop."""
HEALTH_PERIOD_S, HEALTH_TIMEOUT_S = 2.0, 10.0
"""How often Serve checks the health of an LLM replica, and how long it waits for the result. Serve replaces a replica that fails
three checks in a row: with its defaults (10 s, 30 s) only half a minute after the engine died."""
UNBOUNDED = 10_000
"""How many calls Serve gives an LLM replica at a time when the settings set no bound; Serve's default is 5."""
REPORT_S, LOOK_BACK_S = 2.0, 3.0
"""How often replicas and ingresses report their load to the autoscaler, and the window over which Serve averages the requests
queued at the ingresses."""


def config(arguments: dict[str, Any]) -> Application:
    """Return the application for the `key=value` arguments of `serve run`, or the `args` of a Serve config file.

    Raises click.ClickException, which the `serve` command prints as one message, when a setting is wrong.
    """
    try:
        return build(settings_module.load(arguments))
    except SettingsError as error:
        raise click.ClickException(f"wrong settings\n{error}") from error


def build(settings: Settings, replica: type[LLM] = LLM) -> Application:
    """Return the graph: Ingress -> LLM, and Ingress -> UI where that is enabled.

    `replica` is the class to deploy as LLM; tests pass one with scripted tokens. Serve spreads the replicas of each deployment over
    the nodes that have the resources they request (its strategy SPREAD); only LLM replicas request GPUs. Raises SettingsError when
    API keys are wrong.
    """
    set_address(settings)
    # Read here for all ingress replicas: on another host the variable may be unset, and its ingress would ask for no keys.
    api_keys = os.environ.get(keys.ENVIRONMENT)
    if warning := keys.exposed(settings.http, guarded=keys.open_store(settings.access.keys, api_keys) is not None):
        logger.warning("\n".join(warning))
    quiet = LoggingConfig(enable_access_log=False)
    llm = serve.deployment(
        replica,
        name="LLM",
        logging_config=quiet,
        graceful_shutdown_wait_loop_s=DRAIN_CHECK_S,
        **_replica_count(settings),
        max_ongoing_requests=settings.llm.max_ongoing_requests or UNBOUNDED,
        graceful_shutdown_timeout_s=settings.llm.graceful_shutdown_timeout_s,
        health_check_period_s=HEALTH_PERIOD_S,
        health_check_timeout_s=HEALTH_TIMEOUT_S,
        ray_actor_options={
            "num_cpus": settings.llm.num_cpus,
            "num_gpus": settings.llm.num_gpus,
            "accelerator_type": settings.llm.accelerator_type,
        },
        request_router_config=RequestRouterConfig(request_router_class="deployments.routing.router:LeastRequestsRouter"),
    )
    ingress = serve.deployment(
        serve.ingress()(Ingress),
        name="Ingress",
        logging_config=quiet,
        graceful_shutdown_wait_loop_s=DRAIN_CHECK_S,
        num_replicas=settings.ingress.num_replicas,
        max_ongoing_requests=settings.ingress.max_ongoing_requests,
        graceful_shutdown_timeout_s=settings.ingress.graceful_shutdown_timeout_s,
        # Serve's config files accept no None here (Ray 2.60.0), so the option is left out when there is no bound.
        **({} if (bound := settings.ingress.max_replicas_per_node) is None else {"max_replicas_per_node": bound}),
        ray_actor_options={
            "num_cpus": settings.ingress.num_cpus,
            "label_selector": settings.ingress.label_selector,
            **({} if (python := forked.python()) is None else {"runtime_env": {"py_executable": python}}),
        },
    )
    if not settings.ui.enabled:
        return ingress.bind(settings, llm.bind(settings), None, api_keys)
    ui = serve.deployment(
        WebUI,
        name="UI",
        logging_config=quiet,
        graceful_shutdown_wait_loop_s=DRAIN_CHECK_S,
        num_replicas=settings.ui.num_replicas,
        max_ongoing_requests=settings.ui.max_ongoing_requests,
        ray_actor_options={"num_cpus": settings.ui.num_cpus, "label_selector": settings.ui.label_selector},
        request_router_config=RequestRouterConfig(request_router_class="deployments.routing.router:StickyRouter"),
    )
    return ingress.bind(settings, llm.bind(settings), ui.bind(settings), api_keys)


def _replica_count(settings: Settings) -> dict[str, Any]:
    """Return the options of `serve.deployment` that set the number of LLM replicas.

    Serve's own delays and smoothing are off: our policy decides when to wait.
    """
    scaling = settings.autoscaling
    if not scaling.enabled:
        return {"num_replicas": settings.llm.num_replicas}
    with warnings.catch_warnings():
        # The interval is deprecated in favour of environment variables that nothing reads (Ray 2.60.0). Its default is 10 s.
        warnings.simplefilter("ignore", DeprecationWarning)
        autoscaling = AutoscalingConfig(
            min_replicas=scaling.min_replicas,
            initial_replicas=min(max(settings.llm.num_replicas, scaling.min_replicas), scaling.max_replicas),
            max_replicas=scaling.max_replicas,
            upscale_delay_s=0,
            downscale_delay_s=0,
            metrics_interval_s=REPORT_S,
            look_back_period_s=LOOK_BACK_S,
            policy=AutoscalingPolicy(
                policy_function="deployments.autoscaling.scaler:Scaler",
                policy_kwargs={"settings": settings.model_dump(mode="json", exclude={"access", "store"})},  # Serve shows them
            ),
        )
    return {"autoscaling_config": autoscaling}


def set_address(settings: Settings) -> None:
    """Have `serve run` start its proxy on `http.host` and `http.port`."""
    for name, value in (("host", settings.http.host), ("port", settings.http.port)):
        patch(
            HTTPOptions.model_fields[name],
            "default",
            value,
            why="`serve run` (Ray 2.60.0) takes no HTTP options with an import path; HAProxy's default is every interface",
            until="`serve run` has options for host and port",
        )
    HTTPOptions.model_rebuild(force=True)
