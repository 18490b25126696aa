"""`make serve`'s own process: however often it is told to end, and when, it ends the application."""

import json
import re
import signal
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from deployments.access import keys
from deployments.errors import SatoriError
from deployments.host.signals import STOPS
from deployments.launch import __main__
from deployments.settings import ROOT


class Application:
    """One that was started; it is interrupted where `interrupted` says."""

    interrupted: ClassVar[tuple[str, ...]] = ()
    fails: ClassVar[tuple[str, ...]] = ()
    stopped: ClassVar[list[bool]] = []

    def __init__(self, *_: object) -> None:
        self._come("start")

    def wait_ready(self) -> None:
        self._come("wait_ready")

    def wait_gone(self) -> None:
        self._come("wait_gone")

    def drain(self) -> None:
        self._come("drain")

    def stop(self, now: bool) -> None:
        self.stopped.append(now)

    def _come(self, where: str) -> None:
        if where in self.interrupted:
            raise KeyboardInterrupt
        if where in self.fails:
            raise SatoriError(f"failed at {where}")


@pytest.fixture
def handlers() -> Iterator[None]:
    """Put back afterwards what handles the signals that stop an application."""
    before = {number: signal.getsignal(number) for number in STOPS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def application(monkeypatch: pytest.MonkeyPatch, handlers: None) -> type[Application]:
    """What `main` starts in place of an application, on a machine with all GPUs."""
    monkeypatch.setattr(__main__, "Application", Application)
    monkeypatch.setattr(__main__, "check_gpus", lambda *_, **__: None)
    monkeypatch.setattr(Application, "stopped", [])
    return Application


@pytest.mark.parametrize(
    ("interrupted", "now"),
    [
        ((), False),
        (("wait_gone",), False),
        (("wait_ready",), False),
        (("wait_gone", "drain"), True),
        (("wait_gone", "print"), True),  # both signals at once
    ],
)
def test_it_ends_the_application(
    interrupted: tuple[str, ...], now: bool, application: type[Application], monkeypatch: pytest.MonkeyPatch
) -> None:
    def printed(*words: object, **_: object) -> None:
        if not words and "print" in interrupted:
            raise KeyboardInterrupt

    monkeypatch.setattr(__main__, "write", printed)
    monkeypatch.setattr(application, "interrupted", interrupted)
    assert __main__.main(["preset=nano-cpu"]) == 0
    assert application.stopped == [now]


@pytest.mark.parametrize(("fails", "stopped"), [("start", []), ("wait_ready", [False])])
def test_an_application_that_does_not_start_is_told_and_ended(
    fails: str,
    stopped: list[bool],
    application: type[Application],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(application, "fails", (fails,))
    assert __main__.main(["preset=nano-cpu"]) == 1
    assert capsys.readouterr().err == f"error: failed at {fails}\n"
    assert application.stopped == stopped


@pytest.mark.parametrize(
    ("words", "api_keys", "status"),
    [([], None, 1), (["access.open=true"], None, 0), ([], f"alice:{64 * 'a'}", 0), (["http.host=127.0.0.1"], None, 0)],
)
def test_it_listens_for_others_only_with_keys_or_where_that_is_meant(
    words: list[str],
    api_keys: str | None,
    status: int,
    application: type[Application],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By the command of the image."""
    [command] = re.findall(r"^CMD (.+)$", (ROOT / "cluster" / "Dockerfile").read_text(), re.MULTILINE)
    _, _, module, *arguments = json.loads(command)
    assert (module, arguments) == ("deployments.launch", ["http.host=0.0.0.0"])
    monkeypatch.delenv(keys.ENVIRONMENT, raising=False)
    if api_keys is not None:
        monkeypatch.setenv(keys.ENVIRONMENT, api_keys)
    assert __main__.main(["preset=nano-cpu", *arguments, *words]) == status
    assert len(application.stopped) == 1 - status
    assert ("Or set access.open=true" in capsys.readouterr().err) == bool(status)


@pytest.mark.parametrize("number", STOPS)
def test_each_signal_that_stops_it_interrupts(number: signal.Signals, handlers: None) -> None:
    signal.signal(number, signal.SIG_DFL)
    assert __main__.main(["preset=none"]) == 1, "ended by its arguments"
    assert signal.getsignal(number) == signal.default_int_handler


@pytest.mark.parametrize(("before", "after"), [(signal.SIG_DFL, signal.default_int_handler), (signal.SIG_IGN, signal.SIG_IGN)])
def test_a_terminal_that_closes_ends_it_but_for_nohup(before: Any, after: Any, handlers: None) -> None:
    signal.signal(signal.SIGHUP, before)
    assert __main__.main(["preset=none"]) == 1, "ended by its arguments"
    assert signal.getsignal(signal.SIGHUP) == after
