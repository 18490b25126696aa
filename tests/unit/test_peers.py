"""What the load bench compares with: each peer gets the same settings, and leaves by its mark."""

import pytest

from cluster import bench, peers
from deployments.draining import RUN
from deployments.settings import load

SETTINGS = load({"preset": "nano-cpu", "http.port": 8055, "engine.max_model_len": 2048})


@pytest.mark.parametrize("kind", peers.KINDS)
def test_a_peer_has_the_settings_and_a_mark_of_its_own(kind: str) -> None:
    commands = peers.commands(kind, SETTINGS, ["http.port=8055", "engine.max_model_len=2048"])
    words = [word for command in commands for word in command]
    assert any("8055" in word for word in commands[-1])
    assert "2048" in words or "engine.max_model_len=2048" in words
    first, second = (peers.environment(kind, SETTINGS) for _ in range(2))
    assert first[RUN] != second[RUN]
    assert first["OMP_NUM_THREADS"] == SETTINGS.llm.env["OMP_NUM_THREADS"]
    assert (first.get("RAY_SERVE_LLM_ENABLE_DIRECT_STREAMING") == "1") == (kind == "ray-llm-direct")


def test_every_server_gets_a_ratio_to_bare() -> None:
    def row(tokens_s: float) -> dict[str, float]:
        return dict.fromkeys(bench.COLUMNS, tokens_s)

    rows = {("bare", 1, 64): [row(100), row(300), row(200)], ("router", 1, 64): [row(50)], ("ours", 1, 64): [row(220)]}
    lines = bench.table(rows, ["bare", "ours", "router"]).splitlines()
    assert [line.split(" | ")[3] for line in lines[2:]] == ["200", "220 (1.10)", "50 (0.25)"]
