"""What a card holds and how fast it decodes: held against arithmetic by hand and against published measurements."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.plan import capacity
from cluster.plan.architectures import PlanError, Shape, shape
from cluster.plan.capacity import GIB, PRECISIONS, Replica

PUBLISHED = yaml.safe_load(Path(capacity.__file__).with_name("published.yaml").read_text())
BF16, FP8_KV, FP8_WEIGHTS, FP8 = PRECISIONS
CARD = capacity.cards()["rtx-4090"]


def model(name: str) -> Shape:
    return shape(PUBLISHED["models"][name])


def test_satoris_shape_is_as_its_presets_say() -> None:
    replica = Replica(model("qwen2-7b"), CARD, BF16)
    assert replica.weights_bytes / 1e9 == pytest.approx(15.2, abs=0.05)
    assert replica.kv_bytes(1) == 56 * 1024
    fp8 = Replica(model("qwen2-7b"), CARD, FP8)
    assert fp8.weights_bytes / 1e9 == pytest.approx(8.7, abs=0.05)
    assert fp8.kv_bytes(1) == 28 * 1024


def test_what_fits_is_what_the_weights_leave() -> None:
    replica = Replica(model("qwen2-7b"), CARD, BF16, utilization=0.9)
    space = 23.65 * GIB * 0.9 - 2.2 * GIB - replica.weights_bytes
    assert replica.kv_space_bytes == pytest.approx(space, abs=2)
    assert replica.fits(1280) == int(space / (1280 * 56 * 1024))
    assert replica.fits(1265) == replica.fits(1280), "whole blocks of 16 tokens"
    assert replica.fits(640) > 2 * replica.fits(1281)


def test_weights_beyond_a_card_leave_nothing() -> None:
    assert Replica(model("qwen2-14b"), CARD, BF16).fits(1) == 0
    assert Replica(model("qwen2-14b"), CARD, BF16, tp=2).fits(4096) > 0


def test_more_cards_than_kv_heads_hold_copies() -> None:
    assert Replica(model("qwen2-7b"), CARD, BF16, tp=7).kv_copies == 7 / 4
    assert Replica(model("qwen2-7b"), CARD, BF16, tp=4).kv_copies == 1
    with pytest.raises(PlanError, match="tensor_parallel_size=3: allowed: a divisor of the model's 28 attention heads"):
        Replica(model("qwen2-7b"), CARD, BF16, tp=3)


def test_one_stream_is_bound_by_the_bandwidth() -> None:
    replica = Replica(model("qwen2-7b"), CARD, BF16)
    bound = CARD.bandwidth_bytes_s / (replica.weights_bytes - 152064 * 3584 * 2)  # the embedding is not read
    assert 0.75 * bound < replica.tokens_s(1, 1, 256) < bound


def test_figures_stay_below_the_card() -> None:
    for precision, flops in ((BF16, CARD.bf16_flops), (FP8, CARD.fp8_flops)):
        replica = Replica(model("qwen2-7b"), CARD, precision)
        assert replica.tokens_s(10_000, 100, 500) < flops / (2 * replica.shape.matrices)


def measured(run: dict[str, Any]) -> str:
    host, hidden = run["source"].split("/")[2], run["model"]["hidden_size"]
    return f"{host} {hidden} {run['precision']} tp{run['tp']} {run['requests']} {run['tokens_s']}"


def test_published_runs_are_of_one_card_and_of_several_in_both_precisions() -> None:
    runs = PUBLISHED["measured"]
    assert {run["tp"] for run in runs} == {1, 2, 4}
    assert {run["precision"] for run in runs} == {"bf16", "fp8-weights"}
    assert len([run for run in runs if run["tp"] == 1]) > 15


@pytest.mark.parametrize("run", PUBLISHED["measured"], ids=measured)
def test_expectations_are_near_what_was_published(run: dict[str, Any]) -> None:
    [precision] = [one for one in PRECISIONS if one.name == run["precision"]]
    replica = Replica(shape(run["model"]), CARD, precision, run["tp"], utilization=0.9)
    lengths = run["prompt_tokens"], run["output_tokens"]
    requests = min(256, replica.fits(sum(lengths))) if run["requests"] == "full" else run["requests"]
    factor = replica.tokens_s(requests, *lengths) / run["tokens_s"]
    allowed = 1.5 if run["tp"] == 1 else 3
    assert 1 / allowed < factor < allowed


def test_blocks_are_whole() -> None:
    assert capacity.blocks(model("qwen2-7b"), 2, 10 * 56 * 1024 * 16 + 1, 16) == 10
