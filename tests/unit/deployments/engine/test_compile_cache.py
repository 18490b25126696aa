"""Engines that start for the first time on a host: one, then all others."""

import threading
from pathlib import Path

import pytest

from deployments.engine.compile_cache import folder, mark_of, one_at_first
from deployments.settings import Settings, load
from tests.support.until import until

GPU = load({"preset": "nano-gpu"})


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path / "vllm"))
    return tmp_path / "vllm"


class Starting:
    """An engine that starts in a thread, and is up or fails when it is told to."""

    def __init__(self, settings: Settings = GPU) -> None:
        self.entered, self.go, self.fails = threading.Event(), threading.Event(), False
        self._settings = settings
        self._thread = threading.Thread(target=self._start, daemon=True)
        self._thread.start()

    def _start(self) -> None:
        try:
            with one_at_first(self._settings):
                self.entered.set()
                self.go.wait(30)
                if self.fails:
                    raise RuntimeError("no card")
        except RuntimeError:
            pass

    def end(self, fails: bool = False) -> None:
        self.fails = fails
        self.go.set()
        self._thread.join(30)
        assert not self._thread.is_alive()


def test_the_first_one_starts_alone_and_then_all() -> None:
    first = Starting()
    assert first.entered.wait(30)
    others = [Starting(), Starting()]
    assert not any(other.entered.wait(0.05) for other in others)
    first.end()
    assert all(other.entered.wait(30) for other in others), "both at a time"
    later = Starting()
    assert later.entered.wait(30)
    for one in (*others, later):
        one.end()


def test_where_the_first_one_fails_the_next_one_is_first() -> None:
    first = Starting()
    assert first.entered.wait(30)
    others = [Starting(), Starting()]
    first.end(fails=True)
    entered = until(lambda: [other for other in others if other.entered.is_set()], "the next one starts")
    assert len(entered) == 1
    assert not mark_of(GPU).exists()
    entered[0].end()
    assert all(other.entered.wait(30) for other in others)
    for other in others:
        other.end()


@pytest.mark.parametrize("settings", [load({"preset": "nano-cpu"}), load({"preset": "nano-gpu", "engine.enforce_eager": "true"})])
def test_what_compiles_nothing_waits_for_nobody(settings: Settings, cache: Path) -> None:
    engines = [Starting(settings), Starting(settings)]
    assert all(engine.entered.wait(30) for engine in engines)
    for engine in engines:
        engine.end()
    assert not cache.exists()


def test_other_settings_are_compiled_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    assert mark_of(GPU) != mark_of(load({"preset": "nano-gpu", "engine.max_model_len": "2048"}))
    monkeypatch.delenv("VLLM_CACHE_ROOT")
    from vllm import envs

    assert str(folder()) == envs.VLLM_CACHE_ROOT
