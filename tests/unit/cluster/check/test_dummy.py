"""A model with random weights: its files, and its KV cache as vLLM tells it and as the planner computes it."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.check import dummy
from cluster.plan import architectures
from deployments import settings


def test_it_has_satoris_shape_and_a_tokenizer(tmp_path: Path) -> None:
    folder = dummy.make(tmp_path / "dummy", dummy.QWEN2_7B)
    assert architectures.load(str(folder)).parameters == pytest.approx(7.6e9, rel=0.01)
    assert {path.name for path in folder.iterdir()} == {"config.json", "tokenizer.json", "tokenizer_config.json"}
    assert json.loads((folder / "config.json").read_text())["eos_token_id"] is not None


@pytest.mark.parametrize(("preset", "tokens"), [("satori-7b-4090", 100_600), ("satori-7b-4090-fp8", 428_800)])
def test_the_planners_figures_are_those_of_the_preset(preset: str, tokens: int, tmp_path: Path) -> None:
    folder = dummy.make(tmp_path, dummy.QWEN2_7B)
    loaded = settings.load({"preset": preset, "model": str(folder)})
    card = dummy.card_of("NVIDIA GeForce RTX 4090", 23.65 * 1024)
    assert dummy.planned(folder, loaded, card) == pytest.approx(tokens, rel=0.001)


def test_a_card_has_the_memory_that_it_has() -> None:
    card = dummy.card_of("NVIDIA L40S", 45_000)
    assert (card.ray_type, card.memory_gib) == ("L40S", 45_000 / 1024)
    assert dummy.card_of("NVIDIA GeForce RTX 3090", 24_576).bandwidth_bytes_s == 1.008e12, "as an RTX 4090"


def test_the_kv_cache_is_read_from_the_engines_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = {
        "http://a:1/metrics": "# nothing\n",
        "http://b:2/metrics": 'vllm:cache_config_info{block_size="16",engine="0",num_gpu_blocks="6287"} 1.0\n',
    }

    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, json=[{"targets": ["a:1"], "labels": {}}, {"targets": ["b:2"], "labels": {}}])

    def get(url: str, **_: Any) -> httpx.Response:
        return httpx.Response(200, text=metrics[url])

    monkeypatch.setattr(httpx, "get", get)
    with httpx.Client(base_url="http://ingress", transport=httpx.MockTransport(answer)) as http:
        assert dummy.kv_tokens(http) == 6287 * 16
        metrics["http://b:2/metrics"] = ""
        with pytest.raises(LookupError, match="cache_config_info"):
            dummy.kv_tokens(http)
