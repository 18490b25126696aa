"""The check's command, without servers: which parts run, what fails it, and what its log says."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.bench.load import Sample
from cluster.check import __main__
from cluster.check.__main__ import Check, compiled, ratios
from cluster.check.report import Failed, Skipped


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The parts that were run, of a check that starts nothing."""
    ran: list[str] = []
    monkeypatch.setattr(__main__, "OUT", tmp_path / "report.md")
    monkeypatch.setattr(__main__, "interrupt_by_signals", lambda: None)
    monkeypatch.setattr(Check, "nano", lambda self, name="nano", more=(): ran.append(name))
    monkeypatch.setattr(Check, "seven_billion", lambda self, preset: ran.append(preset))
    monkeypatch.setattr(Check, "two", lambda self: ran.append("two cards"))
    return ran


def test_all_parts_run_in_order(parts: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert __main__.main(["--dry"]) == 0
    assert parts == ["nano", "satori-7b-4090", "satori-7b-4090-fp8", "two cards"]
    assert "What was run is well" in capsys.readouterr().out
    assert "Nothing in this report is of a card" in __main__.OUT.read_text()
    assert __main__.main(["--dry", "--only", "nano"]) == 0
    assert parts[4:] == ["nano"]
    assert "two cards: it was not asked for" in __main__.OUT.read_text()


def test_an_interrupted_check_writes_its_report(parts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(self: Check, preset: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Check, "seven_billion", interrupt)
    with pytest.raises(KeyboardInterrupt):
        __main__.main(["--dry"])
    assert parts == ["nano"]
    text = __main__.OUT.read_text()
    for part in ("satori-7b-4090", "satori-7b-4090-fp8", "two cards"):
        assert f"- {part}: interrupted" in text


def test_a_host_that_lacks_something_ends_it(
    parts: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(__main__.cards, "unfit", lambda num_gpus: "no Python.h")
    assert __main__.main([]) == 1
    assert parts == []
    printed = capsys.readouterr().out
    assert "no Python.h; no card" in printed
    assert "FAILED: host" in printed
    assert "no Python.h" in (text := __main__.OUT.read_text())
    assert "- nano: the host lacks something" in text


def test_a_server_that_does_not_start_fails_its_part_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(server: Any) -> Any:
        raise SystemExit(f"{server.name} did not start")

    monkeypatch.setattr(__main__.stack, "running", start)
    check = Check(dry=True)
    check.nano()
    assert check.found.failed == ["nano: start"]
    assert "nano did not start" in capsys.readouterr().out
    assert check.found.not_run == ["nano: all else: it did not start"]


async def test_a_kill_of_nothing_is_no_proof() -> None:
    nothing: Any = SimpleNamespace(llm_replicas=list)
    with pytest.raises(Failed, match="no engine's process"):
        await __main__.kill(nothing)


def test_a_kernel_that_is_compiled_in_service_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = tmp_path / "serve.log"
    monkeypatch.setattr(__main__, "LOG", log)
    start = "WARNING Triton JIT compilation during inference: at the start.\n"
    log.write_text(start + "all well\n")
    assert compiled(len(start)) == "no kernel was compiled in service"
    with log.open("a") as out:
        out.write("WARNING 11-29 Triton JIT compilation during inference: _topk_topp. This causes a latency spike\n")
    with pytest.raises(Failed, match=r"1 kernels, the first: .*_topk_topp"):
        compiled(len(start))


def test_ours_is_compared_with_bare() -> None:
    def sample(clients: int, tokens: int) -> Sample:
        return Sample(clients, seconds=2.0, tokens=tokens)

    said = ratios({"ours": [sample(1, 90), sample(32, 1000)], "bare": [sample(1, 100), sample(32, 1000)]})
    assert "0.90 with 1, 1.00 with 32 clients" in said
    with pytest.raises(Skipped, match="both speeds"):
        ratios({"ours": [sample(1, 90), sample(32, 1000)], "bare": [sample(1, 100)]})


def test_memory_that_is_not_freed_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(__main__, "time", SimpleNamespace(monotonic=lambda: next(clock), sleep=lambda seconds: None))
    used = iter([9000, 500])
    monkeypatch.setattr(__main__.report, "used_mib", lambda: next(used, 500))
    check = Check(dry=False)
    assert check._freed(400) == "500 MiB in use, 400 before"
    monkeypatch.setattr(__main__.report, "used_mib", lambda: 9000)
    with pytest.raises(Failed, match="9000 MiB in use 30 s after the stop, 400 before the start"):
        check._freed(400)
