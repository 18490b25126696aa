"""The lines of a check, and the report of them."""

from pathlib import Path

import pytest

from cluster.check import report
from cluster.check.report import Failed, Report, Skipped


def fail() -> str:
    raise Failed("3 of 5 differ")


def skip() -> str:
    raise Skipped("no card")


def end() -> str:
    raise SystemExit("nano did not start; see its log")


@pytest.mark.parametrize(
    ("check", "good", "line"),
    [
        (lambda: "5 are\nequal", True, "ok      a part"),
        (skip, True, "-       a part"),
        (fail, False, "FAILED  a part"),
        (end, False, "FAILED  a part"),
        (lambda: str(1 // 0), False, "FAILED  a part"),
    ],
)
def test_each_part_has_a_line_whatever_happens(
    check: object, good: bool, line: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = Report(logs=[tmp_path / "serve.log"])
    assert made.run("a part", check) is good  # type: ignore[arg-type]
    assert capsys.readouterr().out.startswith(f"  {line}")
    assert made.failed == ([] if good else ["a part"])


def test_the_report_has_the_table_and_the_log_of_what_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "query", lambda what: ["0, NVIDIA GeForce RTX 4090, 580.95.05, 24564, 12, 450.00, 4"])
    (tmp_path / "serve.log").write_text("CUDA error: out of memory\n")
    made = Report("a dry run", [tmp_path / "serve.log"])
    made.run("nano: parity", lambda: "12 | replies equal")
    made.run("nano: limits", fail)
    made.skip("two cards", "this host has 1")
    made.write(tmp_path / "run" / "report.md")
    text = (tmp_path / "run" / "report.md").read_text()
    for words in (
        "GeForce RTX 4090",
        "| nano: parity | ok | 0 | 12 \\| replies equal |",
        "| nano: limits | FAILED | 0 | 3 of 5 differ |",
        "\na dry run\n",
        "Not run:\n\n- two cards: this host has 1\n",
        "the end of serve.log:\nCUDA error: out of memory",
    ):
        assert words in text


def test_without_nvidias_program_there_are_no_cards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert (report.query("name"), report.cards(), report.used_mib()) == ([], "no cards", 0)
