"""Starts beside bare vLLM: what the command line takes, and the figures of rounds."""

import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from cluster.bench import start
from cluster.bench.stack import Stack
from cluster.bench.start import Idle, Start

MEMORY = 200 * 2**20
PARENT = f"""
import os, time
held = bytes(range(256)) * ({MEMORY} // 256)
os.fork()
print(flush=True)
time.sleep(60)
"""
"""Two processes that share that memory."""


def test_the_defaults_are_five_pairs_and_half_a_minute_idle() -> None:
    options = start.options_of(["llm.num_replicas=2"])
    assert (options.rounds, options.idle, options.only, options.arguments) == (5, 30, None, ["llm.num_replicas=2"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--rounds", "0"], "--rounds: 0: allowed: 1 and more"),
        (["--idle", "-1"], "--idle: -1: allowed: 0 and more"),
        (["--only", "theirs"], "--only: invalid choice: 'theirs'"),
        (["llm.num_replicas"], "'llm.num_replicas': allowed: key=value"),
    ],
)
def test_words_that_make_no_sense_are_refused(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        start.options_of(words)
    assert message in capsys.readouterr().err


def test_ratios_are_within_rounds() -> None:
    """The second round is twice as slow for both. The ratio of both servers' medians would be 1."""
    bare = [Start(10, 20, None), Start(20, 40, None), Start(10, 20, None)]
    ours = [Start(5, 10, Idle(0.02, 2**31, 20)), Start(10, 20, Idle(0.04, 2**30, 20)), Start(20, 10, Idle(0.03, 2**32, 21))]
    lines = start.table({"bare": bare, "ours": ours}).splitlines()
    assert lines == [
        "bare: first answer after 10.0 (10.0 to 20.0) s, 20.0 (20.0 to 40.0) s of CPU",
        "ours: first answer after 10.0 (5.0 to 20.0) s, 10.0 (10.0 to 20.0) s of CPU",
        "ours / bare: first answer 0.50 (0.50 to 2.00), CPU 0.50 (0.50 to 0.50)",
        "ours, idle: 3.0% (2.0% to 4.0%) of a core, 2.00 (1.00 to 4.00) GiB (PSS), 21 processes",
    ]


def test_one_server_has_no_ratio() -> None:
    assert (
        start.table({"ours": [Start(5, 10, None)]}) == "ours: first answer after 5.0 (5.0 to 5.0) s, 10.0 (10.0 to 10.0) s of CPU"
    )


@pytest.fixture
def two() -> Iterator[Stack]:
    """Two processes that share their memory and do nothing."""
    process = psutil.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE)
    for _ in range(2):
        process.stdout.readline()
    yield Stack("", psutil.Process(process.pid))
    for one in (*process.children(), process):
        one.kill()
    process.communicate()


def test_shared_memory_is_counted_once(two: Stack, capsys: pytest.CaptureFixture[str]) -> None:
    found = start.watch(two, 0.1, processes=True)
    assert found.processes == 2
    assert MEMORY < found.memory_bytes < 1.5 * MEMORY
    assert found.cores < 0.5
    assert capsys.readouterr().out.count(" of a core ") == 2
