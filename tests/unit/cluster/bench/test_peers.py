"""The other ways to serve a model: each gets the same settings, and all processes of one can be found."""

import itertools

import pytest

from cluster.bench import peers
from deployments.host.run import RUN
from deployments.settings import load

SETTINGS = load({"preset": "nano-cpu", "http.port": 8055, "engine.max_model_len": 2048})


@pytest.mark.parametrize("kind", peers.KINDS)
def test_a_peer_has_the_settings_and_a_run_of_its_own(kind: str) -> None:
    server, other = (peers.peer(kind, SETTINGS, ["engine.max_model_len=2048"], number) for number in (1, 2))
    words = [word for command in server.commands for word in command]
    assert any("8056" in word for word in server.commands[-1]), "the last one listens"
    assert "2048" in words or "engine.max_model_len=2048" in words
    assert server.environment[RUN] != other.environment[RUN]
    assert server.environment["OMP_NUM_THREADS"] == SETTINGS.llm.env["OMP_NUM_THREADS"]
    assert (server.environment.get("RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING") == "1") == (kind == "ray-llm-direct")
    assert server.environment["RAY_SERVE_HAPROXY_STATS_PORT"] != other.environment["RAY_SERVE_HAPROXY_STATS_PORT"]


def test_bare_vllm_has_the_same_engine_arguments_and_environment() -> None:
    server = peers.bare(SETTINGS, 1)
    [command] = server.commands
    words = dict(itertools.pairwise(command))
    assert (words["--max-model-len"], words["--port"]) == ("2048", "8056")
    assert words["--served-model-name"] == "nano"
    assert server.environment.items() >= SETTINGS.llm.env.items()
    assert RUN not in server.environment
