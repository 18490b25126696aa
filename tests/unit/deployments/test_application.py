"""The graph of deployments, and what each asks of Ray Serve."""

from deployments import settings
from deployments.application import build, config


def test_each_deployment_asks_for_what_its_settings_say() -> None:
    given = {
        "preset": "satori-7b-4090",
        "llm.accelerator_type": "GeForce-RTX-4090",
        "ingress.num_replicas": "3",
        "ingress.max_replicas_per_node": "1",
        "ui.label_selector": {"satori/role": "front"},
    }
    front = build(settings.load(given))._bound_deployment
    llm, ui = (bound._bound_deployment for bound in front.init_args[1:3])
    assert llm.ray_actor_options == {"num_cpus": 2, "num_gpus": 1, "accelerator_type": "GeForce-RTX-4090"}
    assert ui.ray_actor_options == {"num_cpus": 0.1, "label_selector": {"satori/role": "front"}}
    assert "num_gpus" not in front.ray_actor_options
    assert (front._replica_config.max_replicas_per_node, front.num_replicas) == (1, 3)


def test_replicas_report_every_other_second() -> None:
    """Not every ten, as Serve's replicas do where the configuration does not say (Ray 2.60.0)."""
    deployment = config({"preset": "nano-cpu", "autoscaling.enabled": "true"})._bound_deployment
    llm = next(bound._bound_deployment for bound in deployment.init_args if getattr(bound, "_bound_deployment", None) is not None)
    assert llm._deployment_config.autoscaling_config.metrics_interval_s == 2.0
