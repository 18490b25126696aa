"""GPUs that a cluster lacks are told of, and each deployment asks for what its settings say."""

from typing import Any
from unittest import mock

import pytest
from ray.exceptions import RayActorError

from deployments import ingress, settings
from deployments.application import build
from deployments.errors import SettingsError
from deployments.hardware import lacking
from deployments.launch import check_gpus
from deployments.settings import Settings

FOUR_L40S = {"CPU": 64.0, "GPU": 4.0, "accelerator_type:L40S": 1.0}


def load(**llm: Any) -> Settings:
    return settings.load({"preset": "satori-7b-4090", "llm": llm})


@pytest.mark.parametrize(
    ("llm", "resources", "said"),
    [
        ({}, FOUR_L40S, None),
        ({"num_replicas": 4, "accelerator_type": "L40S"}, FOUR_L40S, None),
        ({"num_gpus": 0.25, "num_replicas": 16}, FOUR_L40S, None),
        ({"num_gpus": 0}, {"CPU": 2.0}, None),
        (
            {"accelerator_type": "GeForce-RTX-4090"},
            FOUR_L40S,
            "llm.accelerator_type='GeForce-RTX-4090': the cluster has no such GPU; it has 4 GPUs of type L40S",
        ),
        ({"accelerator_type": "L40S"}, {"CPU": 2.0}, "llm.accelerator_type='L40S': the cluster has no such GPU; it has no GPU"),
        ({}, {"CPU": 2.0}, "llm.num_gpus=1: too many for a replica; the cluster has no GPU"),
        (
            {"num_replicas": 5},
            FOUR_L40S,
            "llm.num_replicas=5 with llm.num_gpus=1: 4 can start; the cluster has 4 GPUs of type L40S",
        ),
    ],
)
def test_what_a_cluster_lacks_is_named(llm: dict[str, Any], resources: dict[str, float], said: str | None) -> None:
    assert lacking(load(**llm).llm, resources) == said


def test_make_serve_needs_the_gpus_here() -> None:
    check_gpus(load(num_replicas=2, accelerator_type="GeForce-RTX-4090"), "local", gpus=2)
    check_gpus(load(), "10.0.0.1:6379", gpus=0)
    with pytest.raises(SettingsError, match=r"llm\.num_gpus=1: .*; this machine has no GPU"):
        check_gpus(load(), "local", gpus=0)


async def test_ready_says_that_the_gpu_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = mock.MagicMock()
    llm.state.remote = mock.AsyncMock(side_effect=RayActorError())
    monkeypatch.setattr(ingress.ray, "cluster_resources", lambda: FOUR_L40S)
    monkeypatch.setattr(ingress.serve, "get_replica_context", mock.MagicMock())
    ingress.serve.get_replica_context().replica_id.unique_id = "x"
    door = ingress.Ingress(load(accelerator_type="A100"), llm, None, None)
    door._client = mock.MagicMock(open_requests={}, carriers=0)
    door._engine = mock.MagicMock()
    door._engine.get_num_unfinished_requests.return_value = 0
    response = await door.ready()
    assert response.status_code == 503
    assert b"no LLM replica is up; llm.accelerator_type='A100': the cluster has no such GPU" in response.body


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


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"engine.tensor_parallel_size": "2"}, "llm.num_gpus=1 with engine.tensor_parallel_size=2: allowed: llm.num_gpus=2"),
        ({"llm.num_gpus": "2"}, "llm.num_gpus=2 with engine.tensor_parallel_size=1: allowed: llm.num_gpus=1"),
        (
            {"engine.pipeline_parallel_size": "2", "engine.tensor_parallel_size": "2", "llm.num_gpus": "2"},
            "llm.num_gpus=2 with engine.tensor_parallel_size=2 and engine.pipeline_parallel_size=2: allowed: llm.num_gpus=4",
        ),
        ({"llm.num_gpus": "0", "llm.accelerator_type": "A100"}, "llm.accelerator_type='A100' with llm.num_gpus=0"),
        ({"ingress.max_replicas_per_node": "0"}, "ingress.max_replicas_per_node='0'"),
    ],
)
def test_gpus_that_do_not_match_the_engine_are_named(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingsError) as error:
        settings.load({"preset": "satori-7b-4090"} | arguments)
    assert said in str(error.value)


def test_gpus_that_match_the_engine_are_fine() -> None:
    for arguments in ({"engine.tensor_parallel_size": "2", "llm.num_gpus": "2"}, {"llm.num_gpus": "0.5"}, {"llm.num_gpus": "0"}):
        settings.load({"preset": "satori-7b-4090"} | arguments)
