"""The planner: replicas for a load, the printed plan, the preset lines, and bad input."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.plan import __main__, capacity, sizing
from cluster.plan.architectures import shape
from cluster.plan.capacity import PRECISIONS, Replica
from cluster.plan.sizing import Demand
from deployments import settings

PUBLISHED = yaml.safe_load(Path(capacity.__file__).with_name("published.yaml").read_text())
CARD = capacity.cards()["rtx-4090"]


@pytest.fixture
def satori(tmp_path: Path) -> str:
    config = PUBLISHED["models"]["qwen2-7b"] | {"max_position_embeddings": 4096}
    (tmp_path / "satori").mkdir()
    (tmp_path / "satori" / "config.json").write_text(json.dumps(config))
    return str(tmp_path / "satori")


def replica(precision: int = 0) -> Replica:
    return Replica(shape(PUBLISHED["models"]["qwen2-7b"]), CARD, PRECISIONS[precision])


def run(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert __main__.main([*words, "--json"]) == 0
    made: dict[str, Any] = json.loads(capsys.readouterr().out)
    return made


def test_waits_are_those_of_a_simulated_queue() -> None:
    demand = Demand(256, 1024, ttft_s=2, tpot_s=None, requests_s=None)
    servers, service_s = 20, replica().request_s(20, 256, 1024)
    rate = 0.9 * servers / service_s
    expected = sizing.ttft_s(replica(), demand, servers, rate)
    chance = random.Random(1)
    free, now, waits = [0.0] * servers, 0.0, []
    for _ in range(200_000):
        now += chance.expovariate(rate)
        first = min(range(servers), key=free.__getitem__)
        began = max(now, free[first])
        waits.append(began - now)
        free[first] = began + chance.expovariate(1 / service_s)
    assert sorted(waits)[int(0.95 * len(waits))] == pytest.approx(expected, rel=0.15)


def test_a_load_takes_the_fewest_replicas_that_keep_the_ttft() -> None:
    demand = Demand(256, 1024, ttft_s=2, tpot_s=None, requests_s=40)
    servers = sizing.slots(replica(), demand)
    needed = sizing.replicas(replica(), demand, servers)
    assert needed
    assert (
        sizing.ttft_s(replica(), demand, servers, 40 / needed) <= 2 < sizing.ttft_s(replica(), demand, servers, 40 / (needed - 1))
    )
    assert sizing.replicas(replica(), Demand(256, 1024, 0.001, None, 40), servers) is None, "a step takes longer"
    assert sizing.ttft_s(replica(), demand, servers, 1000) == math.inf


def test_the_time_of_a_token_bounds_the_requests_at_a_time() -> None:
    free = sizing.slots(replica(), Demand(256, 1024, 2, None, None))
    bound = sizing.slots(replica(), demand := Demand(256, 1024, 2, 0.02, None))
    assert 0 < bound < free
    assert sizing.tpot_s(replica(), demand, bound) <= 0.02 < sizing.tpot_s(replica(), demand, bound + 1)
    assert sizing.slots(replica(), Demand(256, 1024, 2, 0.001, None)) == 0


def test_the_plan_names_everything(satori: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["--model", satori, "--gpu", "rtx-4090", "--count", "8", "--load", "12"]) == 0
    printed = capsys.readouterr().out
    for word in (
        "7.62 B parameters",
        "8 x NVIDIA GeForce RTX 4090",
        "56 KiB",
        "TTFT p95",
        "8 cards are enough",
        "Assumed:",
        "speculation",
    ):
        assert word in printed
    assert max(len(line) for line in printed.replace(satori, "satori").splitlines()) < 125


def test_the_preset_lines_are_settings(satori: str, capsys: pytest.CaptureFixture[str]) -> None:
    made = run(capsys, "--model", satori, "--gpu", "rtx-4090", "--count", "8", "--precision", "fp8")
    loaded = settings.load({"preset": "satori-7b-4090"} | made["preset"])
    assert (loaded.llm.num_replicas, loaded.llm.num_gpus, loaded.llm.accelerator_type) == (8, 1, "GeForce-RTX-4090")
    assert (loaded.engine["quantization"], loaded.engine["kv_cache_dtype"]) == ("fp8_per_tensor", "fp8")
    assert loaded.engine["max_num_seqs"] == made["rows"][3]["slots"]


def test_what_one_card_cannot_hold_gets_several(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED["models"]["qwen2-14b"]))
    made = run(capsys, "--model", str(tmp_path), "--gpu", "rtx-4090", "--count", "8", "--precision", "bf16")
    assert [row["gpus_per_replica"] for row in made["rows"]] == [2, 2, 1, 1]
    assert made["preset"]["llm"] | {"env": {"NCCL_P2P_DISABLE": "1"}} == made["preset"]["llm"]
    loaded = settings.load({"preset": "satori-7b-4090"} | made["preset"])
    assert (loaded.llm.num_replicas, loaded.llm.num_gpus, loaded.engine["tensor_parallel_size"]) == (4, 2, 2)
    made = run(capsys, "--model", str(tmp_path), "--gpu", "rtx-4090", "--count", "1", "--precision", "bf16")
    assert made["preset"] is None


def test_a_load_beyond_the_cards_is_said(satori: str, capsys: pytest.CaptureFixture[str]) -> None:
    __main__.main(["--model", satori, "--gpu", "rtx-4090", "--count", "2", "--load", "100", "--precision", "bf16"])
    assert "2 cards are too few" in capsys.readouterr().out
    __main__.main(["--model", satori, "--gpu", "rtx-4090", "--count", "2", "--load", "1", "--slo-ttft", "0.001"])
    assert "No number of these cards keeps a TTFT of 0.001 s" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--max-model-len", "100"], "--max-model-len=100: allowed: from 1280"),
        (["--max-model-len", "9000"], "to 4096, the model's max_position_embeddings"),
        (["--output-tokens", "5000"], "--max-model-len=4096: allowed: from 5256"),
        (["--model", "no/such/model"], "model='no/such/model'"),
    ],
)
def test_bad_input_ends_with_a_line(satori: str, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert __main__.main(["--model", satori, "--gpu", "rtx-4090", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    "words", [["--gpu", "rtx-5"], ["--count", "0"], ["--load", "-1"], ["--slo-ttft", "nan"], ["--gpu-memory-utilization", "1.5"]]
)
def test_bad_options_are_refused(satori: str, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    with pytest.raises(SystemExit):
        __main__.main(["--model", satori, "--gpu", "rtx-4090", *words])
    assert f"argument {words[0]}" in capsys.readouterr().err
