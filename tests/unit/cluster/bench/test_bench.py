"""The bench's command line: which servers it compares, and that none of them may lose a process meanwhile."""

import argparse
import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.bench import __main__, pairs, peers, scraper, stack
from cluster.bench.pairs import COLUMNS, Level, Meter, Turn
from cluster.bench.stack import Server
from deployments.settings import ROOT, load

SETTINGS = load({"preset": "nano-cpu", "http.port": 8055})


def servers(*words: str) -> dict[str, Server]:
    """Return the servers of a command line, each with number 1."""
    options = __main__.options_of(["http.port=8055", *words])
    return {name: make(1) for name, make in __main__.servers_of(options, SETTINGS, "tracing.otlp_endpoint=http://sink").items()}


def test_the_defaults_are_pairs_with_bare_of_a_few_seconds() -> None:
    options = __main__.options_of([])
    assert (options.rounds, options.clients, options.tokens, options.turn) == (8, [1, 8, 32, 64], [64], 5)
    assert (options.arguments, options.alone) == ([], False)
    assert list(servers()) == ["bare", "ours"]


@pytest.mark.parametrize("words", ["llm.num_replicas=2 --clients 1 8", "--clients 1 8 --rounds 2 llm.num_replicas=2"])
def test_settings_stand_before_or_after_options(words: str) -> None:
    options = __main__.options_of(words.split())
    assert (options.clients, options.arguments) == ([1, 8], ["llm.num_replicas=2"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rounds", "0"], "--rounds: 0: allowed: 1 and more"),
        (["--clients", "8", "0"], "--clients: 0: allowed: 1 and more"),
        (["--only", "theirs"], "--only: invalid choice: 'theirs'"),
        (["--measuring", "--only", "ours"], "--only: not allowed with argument --measuring"),
        (["--against", "/nowhere"], "--against: /nowhere has no deployments/"),
        (["llm.num_replicas"], "'llm.num_replicas': allowed: key=value"),
        (["--peers", "someone"], "--peers: invalid choice: 'someone'"),
    ],
)
def test_words_that_make_no_sense_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        __main__.options_of(words)
    assert message in capsys.readouterr().err


def test_peers_need_their_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(peers, "PYTHON", tmp_path / "python")
    with pytest.raises(SystemExit, match="2"):
        __main__.options_of(["--peers"])
    assert "python dev/peers.py makes it" in capsys.readouterr().err
    peers.PYTHON.touch()
    assert list(servers("--peers")) == ["bare", "ours", *peers.KINDS]
    assert list(servers("--peers", "router")) == ["bare", "ours", "router"]


def test_both_servers_have_the_same_settings_and_ports_apart() -> None:
    found = servers("engine.max_model_len=2048")
    assert "engine.max_model_len=2048" in found["ours"].commands[0]
    assert {server.url for server in found.values()} == {"http://127.0.0.1:8056"}, "both have number 1 here"
    assert "8056" in found["bare"].commands[0]
    assert "http.port=8056" in found["ours"].commands[0]


def test_another_checkout_is_the_one_before(tmp_path: Path) -> None:
    (tmp_path / "deployments").mkdir()
    found = servers("--against", str(tmp_path))
    assert {name: server.folder for name, server in found.items()} == {"before": tmp_path, "ours": ROOT}


def test_measuring_is_off_and_on() -> None:
    found = {name: server.commands[0] for name, server in servers("--measuring").items()}
    assert list(found) == list(scraper.KINDS)
    assert "measuring.enabled=false" in found["unmeasured"]
    assert "tracing.otlp_endpoint=http://sink" in found["measured"]
    assert not [word for word in found["unmeasured"] if word.startswith("tracing")]


@pytest.mark.parametrize("only", ["bare", "ours"])
def test_one_may_run_by_itself(only: str) -> None:
    assert list(servers("--only", only)) == [only]


class Fake:
    """A running server. `lasting` gives its processes, of which it loses one by the second look if it is `broken`."""

    def __init__(self, name: str, broken: bool = False) -> None:
        self.url, self.looks, self.broken = f"http://{name}", 0, broken

    def settle(self) -> None: ...

    def lasting(self) -> set[str]:
        self.looks += 1
        return {"engine"} if self.broken and self.looks == 2 else {"engine", "ingress"}


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is started and what is measured, in order."""
    events: list[str] = []

    @contextlib.contextmanager
    def running(server: tuple[str, int]) -> Iterator[Fake]:
        name, number = server
        events.append(f"start {name} {number}")
        yield Fake(name, broken=name == "broken")
        events.append(f"stop {name}")

    def take_turns(meter: Any, stacks: Any, levels: Any, rounds: Any, pairing: str, beside: Any) -> list[Turn]:
        events.append(f"{' '.join(stacks)}: {list(rounds)}")
        row = dict.fromkeys(COLUMNS, 2.0)
        return [Turn(pairing, number, name, level, row) for number in rounds for level in levels for name in stacks]

    monkeypatch.setattr(stack, "running", running)
    monkeypatch.setattr(pairs, "take_turns", take_turns)
    return events


def three(*names: str) -> Any:
    return {name: lambda number, name=name: (name, number) for name in names}


OPTIONS = argparse.Namespace(rounds=2)
METER, LEVELS = Meter("nano", 5), [Level(1, 64)]


def test_each_server_is_paired_with_the_first_one_which_stays_up(started: list[str]) -> None:
    turns = __main__.paired(OPTIONS, three("bare", "ours", "router"), METER, LEVELS, {})
    assert started == [
        "start bare 0",
        "start ours 1",
        "bare ours: [0, 1]",
        "stop ours",
        "start router 1",
        "bare router: [0, 1]",
        "stop router",
        "stop bare",
    ]
    assert {turn.pairing for turn in turns} == {"ours", "router"}
    assert len(turns) == 8


def test_a_server_that_loses_a_process_meanwhile_ends_the_bench(started: list[str]) -> None:
    with pytest.raises(SystemExit, match="broken lost processes during the bench: ingress"):
        __main__.paired(OPTIONS, three("bare", "broken"), METER, LEVELS, {})


def test_servers_that_do_not_fit_together_start_in_turning_order(started: list[str]) -> None:
    turns = __main__.alone(OPTIONS, three("bare", "ours"), METER, LEVELS, {})
    assert [event for event in started if event.startswith("start")] == [
        "start bare 0",
        "start ours 0",
        "start ours 0",
        "start bare 0",
    ]
    assert [event for event in started if ":" in event] == ["bare: [0]", "ours: [0]", "ours: [1]", "bare: [1]"]
    assert pairs.ratios(turns, "bare", "ours", LEVELS[0], "tokens/s") == [1, 1]


def test_it_prints_hardware_ratios_and_medians(
    started: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr(__main__, "interrupt_by_signals", lambda: None)
    monkeypatch.setattr(__main__, "servers_of", lambda *_: three("bare", "ours"))
    monkeypatch.setattr(__main__, "ROOT", tmp_path)
    (tmp_path / ".run").mkdir()
    __main__.main(["--rounds", "2", "--clients", "1", "--tokens", "64"])
    printed = capsys.readouterr().out
    assert printed.startswith(stack.machine() + "; nano; ours ")
    assert "Ratios to bare within pairs: median (lowest to highest)" in printed
    assert "| 64 | 1 | ours | 2 | 1.000 (1.000 to 1.000) |" in printed
    assert "| 64 | 1 | bare | 2 | 2 | 2.0 |" in printed
    kept = json.loads((tmp_path / ".run" / "bench.json").read_text())
    assert [(turn["server"], turn["round"]) for turn in kept] == [("bare", 0), ("ours", 0), ("bare", 1), ("ours", 1)]


@pytest.mark.parametrize(("figure", "warned"), [(2.0, True), (0.1, False)])
def test_a_busy_machine_is_told(
    started: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    figure: float,
    warned: bool,
) -> None:
    turns = [Turn("ours", 0, name, LEVELS[0], dict.fromkeys(COLUMNS, figure)) for name in ("bare", "ours")]
    monkeypatch.setattr(pairs, "take_turns", lambda *_: turns)
    monkeypatch.setattr(__main__, "interrupt_by_signals", lambda: None)
    monkeypatch.setattr(__main__, "servers_of", lambda *_: three("bare", "ours"))
    monkeypatch.setattr(__main__, "ROOT", tmp_path)
    (tmp_path / ".run").mkdir()
    __main__.main([])
    assert ("WARNING: other processes used" in capsys.readouterr().out) == warned


def test_the_commit_of_a_folder_without_one_is_not_told(tmp_path: Path) -> None:
    assert __main__.commit(tmp_path) == ""
    assert __main__.commit(ROOT) != ""
