"""The bench's turns, one server paused while the other has its own, and the ratios of their figures."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import pytest

from cluster.bench import load, pairs
from cluster.bench.pairs import COLUMNS, RATIOS, Level, Meter, Turn, Usage
from cluster.bench.stack import Stack

LEVELS = [Level(1, 64), Level(32, 64)]


class Paused(Stack):
    """A server that says when it is paused and when it goes on."""

    def __init__(self, name: str, events: list[str]) -> None:
        self.name, self.events, self.runs = name, events, True

    def pause(self) -> None:
        self.runs = False
        self.events.append(f"{self.name} pauses")

    def resume(self) -> None:
        self.runs = True
        self.events.append(f"{self.name} runs")


class Turns(Meter):
    """Gives each turn a figure, and looks who runs meanwhile."""

    def __init__(self, stacks: dict[str, Paused]) -> None:
        self.stacks, self.seen = stacks, list[tuple[str, Level, int]]()

    def measure(self, stack: Stack, level: Level, seed: int) -> dict[str, float]:
        assert [name for name, one in self.stacks.items() if one.runs] == [stack.name]  # type: ignore[attr-defined]
        self.seen.append((stack.name, level, seed))  # type: ignore[attr-defined]
        return dict.fromkeys(COLUMNS, float(len(self.seen)))


@pytest.fixture
def stacks(monkeypatch: pytest.MonkeyPatch) -> dict[str, Paused]:
    events: list[str] = []
    found = {name: Paused(name, events) for name in ("bare", "ours")}
    monkeypatch.setattr(pairs.time, "sleep", lambda seconds: events.append(f"both run: {all(one.runs for one in found.values())}"))
    return found


def test_one_server_runs_at_a_time_and_the_first_one_changes(stacks: dict[str, Paused]) -> None:
    meter = Turns(stacks)
    turns = pairs.take_turns(meter, stacks, LEVELS, range(2), "ours", {})
    assert [(name, level) for name, level, _ in meter.seen] == [
        ("bare", LEVELS[0]),
        ("ours", LEVELS[0]),
        ("bare", LEVELS[1]),
        ("ours", LEVELS[1]),
        ("ours", LEVELS[0]),
        ("bare", LEVELS[0]),
        ("ours", LEVELS[1]),
        ("bare", LEVELS[1]),
    ]
    assert [(turn.server, turn.level) for turn in turns] == [(name, level) for name, level, _ in meter.seen]
    assert [turn.round for turn in turns] == [0] * 4 + [1] * 4


def test_both_of_a_pair_get_the_same_requests_and_other_pairs_others(stacks: dict[str, Paused]) -> None:
    meter = Turns(stacks)
    pairs.take_turns(meter, stacks, LEVELS, range(2), "ours", {})
    seeds = [seed for _, _, seed in meter.seen]
    assert seeds[::2] == seeds[1::2]
    assert len(set(seeds)) == 4


def test_both_run_between_pairs_and_at_the_end(stacks: dict[str, Paused]) -> None:
    pairs.take_turns(Turns(stacks), stacks, LEVELS, range(1), "ours", {})
    events = stacks["bare"].events
    assert events.count("both run: True") == len(LEVELS)
    assert "both run: False" not in events
    assert all(one.runs for one in stacks.values())


def test_all_run_again_after_a_turn_that_failed(stacks: dict[str, Paused]) -> None:
    class Failing(Turns):
        def measure(self, *_: Any) -> dict[str, float]:
            raise ConnectionError

    with pytest.raises(ConnectionError):
        pairs.take_turns(Failing(stacks), stacks, LEVELS, range(1), "ours", {})
    assert all(one.runs for one in stacks.values())


def test_what_is_beside_a_server_is_open_in_its_turns_only(stacks: dict[str, Paused]) -> None:
    @contextlib.contextmanager
    def scraped(stack: Stack) -> Iterator[None]:
        stacks["bare"].events.append(f"scrape {stack.name}")  # type: ignore[attr-defined]
        yield
        stacks["bare"].events.append("scraped")

    pairs.take_turns(Turns(stacks), stacks, LEVELS[:1], range(1), "ours", {"ours": scraped})
    events = stacks["bare"].events
    begun, ended = events.index("scrape ours"), events.index("scraped")
    assert events[begun - 1] == "ours runs"
    assert events[begun + 1 : ended + 2] == ["scraped", "ours pauses"]


@pytest.mark.parametrize(
    ("level", "tokens_s", "requests"),
    [(Level(1, 64), 500, 39), (Level(32, 64), 2400, 192), (Level(64, 256), 3000, 64), (Level(64, 64), 1, 64)],
)
def test_a_turn_has_the_same_number_of_requests_for_each_client(level: Level, tokens_s: float, requests: int) -> None:
    assert level.requests(tokens_s, 5) == requests


def test_the_first_turn_of_a_level_finds_out_how_many_requests_all_have(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[tuple[int, ...]] = []

    async def run(host: str, port: int, model: str, clients: int, requests: int, tokens: int, seed: int) -> load.Sample:
        runs.append((port, requests, seed))
        tokens_s = {1: 640, 2: 320}[port]  # the second server is slower
        return load.Sample(clients, requests * tokens / tokens_s, requests, requests * tokens, [0.1], [0.2])

    monkeypatch.setattr(load, "run", run)
    monkeypatch.setattr(pairs, "cpu_seconds", lambda processes: 0.0)
    monkeypatch.setattr(Stack, "parts", lambda self: {"engine": [], "rest": []})
    meter = Meter("nano", 5.0)
    rows = [meter.measure(Stack(f"http://127.0.0.1:{port}", None), Level(4, 64), 7) for port in (1, 2, 1)]  # type: ignore[arg-type]
    assert runs[0] == (1, 8, 8)
    assert [requests for _, requests, seed in runs if seed == 7] == [48, 48, 48], "640 tokens/s of 64 tokens, 5 s, for 4 clients"
    assert [requests for _, requests, seed in runs[1:] if seed == 8] == [8, 8, 8], "a second"
    assert [row["tokens/s"] for row in rows] == [640, 320, 640]


def test_the_columns_of_a_sample() -> None:
    sample = load.Sample(2, seconds=2.0, chunks=80, tokens=100, ttft=[0.01, 0.02, 0.03], itl=[0.001] * 99 + [0.5])
    server = {"engine": 0.18, "API server": 0.06, "proxy": 0.03, "LLM replica": 0.01, "rest": 0.02}
    row = {name: column(sample, Usage(server, client=0.1, others=1.0)) for name, column in COLUMNS.items()}
    assert row == {
        "tokens/s": 50,
        "chunks/s": 40,
        "TTFT p50 ms": pytest.approx(20),
        "TTFT p95 ms": pytest.approx(30),
        "ITL p50 ms": pytest.approx(1),
        "ITL p99 ms": pytest.approx(1),
        "CPU s/1k tok": pytest.approx(3),
        "without engine": pytest.approx(1.2),
        "API server": pytest.approx(0.6),
        "proxy": pytest.approx(0.3),
        "LLM replica": pytest.approx(0.1),
        "rest": pytest.approx(0.2),
        "CPU ms/request": pytest.approx(40),
        "client CPU s/1k tok": pytest.approx(1),
        "others' CPU cores": 0.5,
    }
    assert set(RATIOS) <= row.keys()


def turn(server: str, round_: int, value: float, level: Level = LEVELS[0], pairing: str = "ours") -> Turn:
    return Turn(pairing, round_, server, level, dict.fromkeys(COLUMNS, value))


def test_ratios_are_within_pairs_whoever_was_first() -> None:
    turns = [turn("bare", 0, 100), turn("ours", 0, 90), turn("ours", 1, 220), turn("bare", 1, 200)]
    turns += [turn("bare", 0, 1, LEVELS[1]), turn("ours", 0, 1, LEVELS[1])]
    turns += [turn("bare", 0, 50, pairing="router"), turn("router", 0, 40, pairing="router")]
    assert pairs.ratios(turns, "bare", "ours", LEVELS[0], "tokens/s") == [0.9, 1.1]
    assert pairs.ratios(turns, "bare", "router", LEVELS[0], "tokens/s") == [0.8], "to bare in the same pairing"


def test_a_ratio_to_nothing_is_no_number() -> None:
    [ratio] = pairs.ratios([turn("bare", 0, 0), turn("ours", 0, 1)], "bare", "ours", LEVELS[0], "ITL p50 ms")
    assert math.isnan(ratio)


def test_the_table_has_the_median_and_the_range_of_the_ratios() -> None:
    of_bare, of_ours = (100, 100, 100, 200), (90, 95, 104, 200)
    turns = [turn("bare", number, value) for number, value in enumerate(of_bare)]
    turns += [turn("ours", number, value) for number, value in enumerate(of_ours)]
    turns += [turn("ours", 0, 3, LEVELS[1]), turn("bare", 0, 2, LEVELS[1])]
    lines = pairs.ratio_table(turns, "bare").splitlines()
    assert lines[0].startswith("| answer | clients | server | pairs | tokens/s |")
    assert lines[2].startswith("| 64 | 1 | ours | 4 | 0.975 (0.900 to 1.040) |")
    assert lines[3].startswith("| 64 | 32 | ours | 1 | 1.500 (1.500 to 1.500) |")
    assert {line.count("|") for line in lines} == {5 + len(RATIOS)}
    assert len(lines) == 4


def test_the_other_table_has_the_medians_of_each_server() -> None:
    turns = [turn("bare", number, value) for number, value in enumerate((100.4, 300, 200))] + [turn("ours", 0, 7)]
    lines = pairs.median_table(turns).splitlines()
    assert lines[2].startswith("| 64 | 1 | bare | 200 | 200 | 200.0 |")
    assert lines[3].startswith("| 64 | 1 | ours | 7 | 7 | 7.0 |")
    assert {line.count("|") for line in lines} == {4 + len(COLUMNS)}


def test_the_machines_seconds_grow_with_its_work() -> None:
    before = pairs._machine_seconds()
    begin = pairs.time.process_time()
    while pairs.time.process_time() - begin < 0.1:
        pass
    assert pairs._machine_seconds() - before >= 0.05, "counted in hundredths"
