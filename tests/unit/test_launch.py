"""`make serve`'s own process: however often it is told to end, and when, it ends the application."""

import signal
from collections.abc import Iterator
from typing import Any, ClassVar

import pytest

from deployments import launch


class Application:
    """One that was started; it is interrupted where `interrupted` says."""

    interrupted: ClassVar[tuple[str, ...]] = ()
    stopped: ClassVar[list[bool]] = []

    def __init__(self, *_: object) -> None: ...

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


@pytest.fixture
def handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in launch.STOPS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("interrupted", "now"),
    [
        (("wait_gone",), False),
        (("wait_ready",), False),
        (("wait_gone", "drain"), True),
        (("wait_gone", "print"), True),  # both signals at once
    ],
)
def test_it_ends_the_application(interrupted: tuple[str, ...], now: bool, monkeypatch: pytest.MonkeyPatch, handlers: None) -> None:
    def printed(*words: object, **_: object) -> None:
        if not words and "print" in interrupted:
            raise KeyboardInterrupt

    monkeypatch.setattr(launch, "print", printed, raising=False)
    monkeypatch.setattr(launch, "Application", Application)
    monkeypatch.setattr(launch, "check_gpus", lambda *_, **__: None)
    monkeypatch.setattr(Application, "interrupted", interrupted)
    monkeypatch.setattr(Application, "stopped", [])
    assert launch.main(["preset=nano-cpu"]) == 0
    assert Application.stopped == [now]


@pytest.mark.parametrize(("before", "after"), [(signal.SIG_DFL, signal.default_int_handler), (signal.SIG_IGN, signal.SIG_IGN)])
def test_a_terminal_that_closes_ends_it_but_for_nohup(before: Any, after: Any, handlers: None) -> None:
    signal.signal(signal.SIGHUP, before)
    assert launch.main(["preset=none"]) == 1, "ended by its arguments"
    assert signal.getsignal(signal.SIGHUP) == after
