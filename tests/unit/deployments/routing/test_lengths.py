"""Predicted lengths: what they say with nothing seen, what they learn, and that they are calibrated on chains held out."""

import random
import threading

import pytest

from cluster.simulate.lengths import Chain, calibration, made, recorded
from deployments.routing import lengths
from deployments.routing.lengths import EDGES, KEYS, LONGEST, Asked, Lengths


def learned(*chains: Chain) -> Lengths:
    seen = Lengths()
    for chain in chains:
        seen.observe(chain.asked, chain.tokens, chain.turns, cut=chain.cut)
    return seen


def test_with_nothing_seen_a_forecast_is_wide_and_keeps_to_the_bounds() -> None:
    seen = Lengths()
    told = seen.forecast(Asked(50, 4096))
    assert told.low < 50 < told.median < told.high == 4096
    assert told.low < told.mean < 4096
    assert seen.forecast(Asked(50, 20)).high == 20
    assert seen.forecast(Asked(50, 4096, "low", 400)).high < 700, "it must answer after 400 tokens"
    assert seen.forecast(Asked(50, 4096, min_tokens=1000)).low >= 1000
    assert seen.forecast(Asked(50, 300, min_tokens=300)) == lengths.Forecast(300, 300, 300, 300)


@pytest.mark.parametrize(("age", "most"), [(0, 1), (9, 10), (4095, 4096), (4096, 4096), (LONGEST + 5, 2 * LONGEST), (0, LONGEST)])
def test_something_is_always_to_come_and_in_order(age: int, most: int) -> None:
    for seen in (Lengths(), learned(*[Chain(Asked(50, most), 100)] * 50)):
        told = seen.forecast(Asked(50, most), age)
        assert 1 <= told.low <= told.median <= told.high <= max(1, most - age)
        assert 1 <= told.mean <= max(1, most - age)


def test_quantiles_and_mean_are_those_of_the_chains_that_were_seen() -> None:
    rng = random.Random(1)
    drawn = [rng.randint(200, 1000) for _ in range(900)]
    told = learned(*(Chain(Asked(50), tokens) for tokens in drawn)).forecast(Asked(50, 4096))
    assert told.low == pytest.approx(280, rel=0.1)
    assert told.median == pytest.approx(600, rel=0.1)
    assert told.high == pytest.approx(920, rel=0.1)
    assert told.mean == pytest.approx(600, rel=0.1)


def test_a_chain_is_like_those_that_were_as_long_as_it_is() -> None:
    """Two in three end after about 100 tokens, the others after about 1,000: who has 200 is one of these."""
    seen = learned(*(Chain(Asked(50), tokens + jitter) for jitter in range(40) for tokens in (90, 90, 990)))
    at_first, later = seen.forecast(Asked(50, 4096)), seen.forecast(Asked(50, 4096), age=200)
    assert at_first.median < 140
    assert 700 < later.median < 900
    assert later.low > 500


def test_turns_so_far_tell() -> None:
    """Who reflects, does so again."""
    chains = [Chain(Asked(50), 100 + jitter) for jitter in range(60)]
    chains += [Chain(Asked(50), 900 + jitter, (20, 400, 700)) for jitter in range(60)]
    seen = learned(*chains)
    assert seen.forecast(Asked(50, 4096), age=40, turns=0).high < 200
    assert seen.forecast(Asked(50, 4096), age=40, turns=1).low > 700


def test_what_was_asked_for_tells_once_it_was_seen() -> None:
    chains = [Chain(Asked(question), 20 * question + jitter) for jitter in range(40) for question in (20, 40)]
    seen = learned(*chains, *(Chain(Asked(20, effort="high"), 3000 + jitter) for jitter in range(40)))
    assert seen.forecast(Asked(20, 8000)).median < 500 < seen.forecast(Asked(40, 8000)).median < 900
    assert seen.forecast(Asked(20, 8000, "high")).median > 2900
    low = seen.forecast(Asked(20, 8000, "low", 400))
    assert low.median < low.high < 800, "not seen: as all others, but not for long beyond its budget"
    for _ in range(60):
        seen.observe(Asked(20), 250)
    assert seen.forecast(Asked(20, 8000, "low", 400)).median < low.median, "and it follows the others"


def test_a_chain_that_was_cut_off_does_not_count_as_an_end() -> None:
    """Half of all replies were stopped at 100 tokens. Those that were not went on to 1,000."""
    seen = learned(*(Chain(Asked(50), tokens, cut=tokens == 100) for _ in range(60) for tokens in (100, 1000)))
    assert seen.forecast(Asked(50, 4096)).median == pytest.approx(1000, rel=0.1)
    assert seen.forecast(Asked(50, 4096)).low > 900


def test_what_was_long_ago_is_forgotten() -> None:
    old, new = [Chain(Asked(50), 100)] * 1000, [Chain(Asked(50), 1000)] * 3000
    assert learned(*old, *new).forecast(Asked(50, 4096)).median == pytest.approx(1000, rel=0.1)
    assert learned(*old, *new).forecast(Asked(50, 4096)).low > 900


def test_memory_is_bounded() -> None:
    seen = learned(*(Chain(Asked(2**size, effort=f"{effort}"), 30) for effort in range(40) for size in range(8)))
    seen.forecast(Asked(50, effort="new", budget=7))
    assert len(seen._seen) == KEYS
    longer = learned(*(Chain(Asked(1), tokens, (1,) * 9) for tokens in EDGES))
    assert {state[0] for state in longer._seen[()]} == set(range(len(lengths.AGES)))
    assert {state[1] for state in longer._seen[()]} == {0, lengths.TURNS}


def test_any_thread_may_ask_and_learn() -> None:
    seen, failures = Lengths(), []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        try:
            for _ in range(300):
                seen.observe(Asked(rng.randint(1, 900), effort=f"{rng.randint(0, 9)}"), rng.randint(1, 3000))
                seen.forecast(Asked(rng.randint(1, 900), 4096, f"{rng.randint(0, 9)}"), rng.randint(0, 900))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert seen._seen[()][lengths.BEGINNING].total > 512


@pytest.mark.parametrize(
    "chains", [recorded(), made(1500, 1, True), made(1500, 2, False)], ids=["nano", "made reasoning", "made chats"]
)
def test_the_interval_of_80_percent_holds_80_percent_of_chains_held_out(chains: list[Chain]) -> None:
    for age, held in calibration(chains, 1).items():
        if held.chains > 200:
            assert 0.75 <= held.inside <= 0.85, (age, held)
