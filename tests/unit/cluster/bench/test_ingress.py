"""The bench of an ingress: its options, and its table. `tests/parts/test_ingress_bench.py` runs it."""

import os
import time

import pytest

from cluster.bench import ingress


def test_what_it_takes() -> None:
    options = ingress.options_of(["--rounds", "2", "engine.max_model_len=512", "--servers", "bare", "queued"])
    assert (options.rounds, options.servers, options.arguments) == (2, ["bare", "queued"], ["engine.max_model_len=512"])


@pytest.mark.parametrize("words", [["--tokens", "1"], ["--servers", "other"], ["half"]])
def test_what_it_refuses(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        ingress.options_of(words)
    assert words[-1] in capsys.readouterr().err


def test_the_table_has_medians_and_ratios_within_rounds() -> None:
    def row(value: float) -> ingress.Figures:
        return dict.fromkeys(ingress.COLUMNS, value)

    table = ingress.table({"bare": [row(10), row(20), row(40)], "ours": [row(5), row(20), row(10)]})
    assert "| bare | 20.0 (10.0 to 40.0) |" in table
    assert "| ours of bare | 0.50 (0.25 to 1.00) |" in table
    assert len({line.count("|") for line in table.splitlines()}) == 1


def test_a_process_tells_its_cpu_time() -> None:
    class Process:
        pid = os.getpid()

    before = time.process_time()
    found = ingress.Server(Process(), 0).cpu_s()  # type: ignore[arg-type]
    assert before <= found <= time.process_time()
