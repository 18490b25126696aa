"""Speculation by n-grams: what is drafted, what that gives, and when it pays."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.plan import capacity, ngrams, speculation
from cluster.plan.architectures import shape
from cluster.plan.capacity import PRECISIONS, Replica
from cluster.plan.ngrams import Ngrams, tokens_a_step
from cluster.plan.speculation import gain, schedule
from deployments import settings

QWEN2_7B = shape(yaml.safe_load(Path(capacity.__file__).with_name("published.yaml").read_text())["models"]["qwen2-7b"])
CONTEXT = 256 + 1024 // 2
"""The plan's default request, half way through its output."""


def replica(precision: str = "bf16") -> Replica:
    [one] = [one for one in PRECISIONS if one.name == precision]
    return Replica(QWEN2_7B, capacity.cards()["rtx-4090"], one)


@pytest.mark.parametrize(
    ("tokens", "lengths", "drafts"),
    [
        ([1, 2, 3, 1, 2], (2, 2), [3, 1, 2]),
        ([1, 2, 3, 4, 1, 2, 5, 6, 1, 2], (2, 2), [5, 6, 1]),  # the latest
        ([7, 1, 2, 8, 3, 1, 2, 9, 7, 1, 2], (1, 3), [8, 3, 1]),  # the longest
        ([1, 2, 1], (1, 3), [2, 1, 1]),  # where too few follow, the last token again
        ([5, 5, 5], (2, 2), [5, 5, 5]),  # overlapping with itself
        ([1, 2, 3], (1, 3), []),
        ([1], (1, 1), []),
    ],
)
def test_drafts_are_what_followed(tokens: list[int], lengths: tuple[int, int], drafts: list[int]) -> None:
    assert Ngrams(tokens, *lengths).drafts(3) == drafts


def test_texts_before_are_looked_through_for_the_longest_and_then_the_nearest() -> None:
    old, new = Ngrams([1, 2, 3, 4], 1, 3), Ngrams([5, 2, 3, 6], 1, 3)
    assert Ngrams([9, 1, 2], 1, 3, (old, new)).drafts(2) == [3, 4], "two tokens are more than one"
    assert Ngrams([9, 2], 1, 3, (old, new)).drafts(2) == [3, 6]
    assert Ngrams([2, 8, 2], 1, 3, (old, new)).drafts(2) == [8, 2], "its own"
    replies = [([0, number], [5, 6, 7, 8]) for number in range(1, 4)]
    assert tokens_a_step(replies, drafts=3, shortest=1, longest=3) == 1
    assert tokens_a_step(replies, drafts=3, shortest=1, longest=3, before=1) == 9 / (3 + 1 + 1)


def by_search(tokens: list[int], shortest: int, longest: int, most: int) -> list[int]:
    """The same by looking at every place, as vLLM's kernel does."""
    for length in range(longest, shortest - 1, -1):
        for place in range(len(tokens) - length - 1, -1, -1):
            if tokens[place : place + length] == tokens[len(tokens) - length :]:
                found = tokens[place + length :][:most]
                return found + [tokens[-1]] * (most - len(found))
    return []


def test_growing_finds_what_a_search_finds() -> None:
    chance = random.Random(3)
    for _ in range(300):
        tokens = [chance.randrange(4) for _ in range(chance.randrange(1, 30))]
        assert Ngrams(tokens, 1, 3).drafts(4) == by_search(tokens, 1, 3, 4), tokens


def test_a_reply_that_repeats_takes_fewer_steps() -> None:
    assert tokens_a_step([([1, 2], [3, 4, 5, 6])], drafts=3, shortest=1, longest=3) == 1, "nothing repeats"
    reply = [9, *[1, 2, 3, 4] * 10]
    assert tokens_a_step([([], reply)], drafts=3, shortest=2, longest=2) == 40 / (6 + 9), "all drafts are right after the 6th"
    assert tokens_a_step([([], [1])], drafts=3, shortest=1, longest=1) == 1, "the prefill gave it"


def test_more_drafts_give_no_fewer_tokens() -> None:
    chance = random.Random(5)
    replies = [([1, 2, 3], [chance.choice([1, 2, 3, 1, 2]) for _ in range(200)]) for _ in range(5)]
    rates = [tokens_a_step(replies, drafts, 1, 3) for drafts in range(1, 6)]
    assert rates == sorted(rates)
    assert 1 < rates[0] < 2 < 6


def test_drafts_pay_until_the_card_multiplies_longer_than_it_reads() -> None:
    rates = speculation.measured()
    assert gain(replica(), rates, 5, 1, CONTEXT) == pytest.approx(rates[5], rel=0.02), "the weights are read once for all"
    assert gain(replica(), rates, 5, 64, CONTEXT) < 0.6
    assert gain(replica(), rates, 1, 256, CONTEXT) < 0.9


@pytest.mark.parametrize("precision", [one.name for one in PRECISIONS])
def test_a_schedule_covers_all_batch_sizes_and_never_costs(precision: str) -> None:
    rates, entries = speculation.measured(), schedule(replica(precision), speculation.measured(), CONTEXT, 256)
    assert [batch for first, last, _ in entries for batch in range(first, last + 1)] == list(range(1, 257))
    assert [drafts for _, _, drafts in entries] == [5, 3, 1, 0]
    for first, last, drafts in entries:
        assert not drafts or min(gain(replica(precision), rates, drafts, batch, CONTEXT) for batch in (first, last)) >= 1.05


def test_what_does_not_pay_is_not_configured() -> None:
    rates = dict.fromkeys(range(1, 6), 1.0)
    entries = schedule(replica(), rates, CONTEXT, 8)
    assert entries == [(1, 8, 0)]
    assert speculation.config(entries) is None


@pytest.mark.parametrize(("preset", "precision"), [("satori-7b-4090", "bf16"), ("satori-7b-4090-fp8", "fp8")])
def test_the_presets_have_what_the_plan_says(preset: str, precision: str) -> None:
    engine = settings.load({"preset": preset}).engine
    entries = schedule(replica(precision), speculation.measured(), CONTEXT, engine["max_num_seqs"])
    assert engine["speculative_config"] == speculation.config(entries)


def test_replies_are_read_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[dict[str, Any]] = [{"prompt_token_ids": [1], "token_ids": [2, 3] * 20}] * 2
    (tmp_path / "replies.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert ngrams.main([str(tmp_path / "replies.jsonl")]) == 0
    printed = capsys.readouterr().out
    assert "2 replies, 80 tokens" in printed
    assert printed.count(" to ") == len(ngrams.LENGTHS)
    (tmp_path / "replies.jsonl").write_text("{}")
    assert ngrams.main([str(tmp_path / "replies.jsonl")]) == 2
    assert "KeyError" in capsys.readouterr().err
