"""What a cluster lacks for the settings."""

from typing import Any

import pytest

from deployments import settings
from deployments.host.gpus import lacking
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
