"""A running application as the launcher sees it: its environment, its key, and how it is drained."""

import os
import re
import shutil
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray._common import utils
from ray._private import ray_constants
from ray.serve._private import constants

from deployments.access import keys
from deployments.access.keys import KeyStore, digest
from deployments.errors import SatoriError
from deployments.host.environment import SERVING
from deployments.host.run import FOLDER, RUN, marker
from deployments.launch import serve_run
from deployments.launch.serve_run import Application
from deployments.settings import ROOT, load


@pytest.mark.parametrize("before", [None, "", f"alice:{digest('a')}"])
def test_the_launcher_may_ask_what_it_starts(before: str | None) -> None:
    variables = {RUN: "0123456789abcdef"} | ({} if before is None else {keys.ENVIRONMENT: before})
    made = serve_run.add_key(variables)
    store = KeyStore(None, variables[keys.ENVIRONMENT])
    assert getattr(store.find(made), "name", None) == "make-serve-01234567"
    assert (store.find("a") is not None) == bool(before)


def test_the_callers_environment_wins_over_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    name = next(iter(SERVING))
    monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("PYTHONPATH", "/mine")
    made = serve_run.environment()
    assert (made[name], made["RAY_ADDRESS"]) == (SERVING[name], "local")
    assert made.items() >= serve_run.LEAN.items()
    assert made["PYTHONPATH"] == f"{ROOT}{os.pathsep}/mine"
    monkeypatch.setenv(name, "my own")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    made = serve_run.environment()
    assert (made[name], made["RAY_ADDRESS"]) == ("my own", "10.0.0.1:6379")
    assert not made.keys() & serve_run.LEAN.keys(), "a cluster is as its operator has started it"


def test_each_run_has_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUN, "of somebody else")
    assert len({serve_run.environment()[RUN] for _ in range(3)} | {"of somebody else"}) == 4


class Ingresses:
    """What the ingresses say of themselves, one at a time; they see the mark of a run that is draining."""

    def __init__(self, run: dict[str, str], *said: dict[str, Any] | None) -> None:
        self._mark, self._said = marker(run), list(said)
        self.saw_the_mark: list[bool] = []

    def __call__(self) -> dict[str, Any] | None:
        self.saw_the_mark.append(self._mark.exists())
        return self._said.pop(0) if len(self._said) > 1 else self._said[0]


def says(ingress: str, requests: int) -> dict[str, Any]:
    return {"id": ingress, "requests": requests}


def draining(ingresses: Ingresses, run: dict[str, str], **settings: str) -> Application:
    made = Application.__new__(Application)
    given = {name.replace("__", "."): value for name, value in settings.items()}
    made._settings, made._variables = load({"preset": "nano-cpu"} | given), run
    made._ingress = ingresses  # type: ignore[method-assign]
    return made


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The environment of a run whose folder is the test's own."""
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return {FOLDER: str(tmp_path)}


@pytest.mark.parametrize(("preset", "attempts"), [("nano-cpu", "1"), ("nano-gpu", None)])
def test_a_failed_start_is_final_on_a_cpu_only(preset: str, attempts: str | None) -> None:
    [name] = re.findall(r'"(RAY_SERVE_MAX_PER_REPLICA_RETRY_COUNT)"', Path(constants.__file__).read_text())
    assert serve_run.retries(load({"preset": preset})).get(name) == attempts


@pytest.mark.parametrize(
    ("replicas", "said", "asked"),
    [
        ("1", [says("a", 0)], 1),
        ("1", [says("a", 2), says("a", 1), says("a", 0)], 3),
        ("2", [says("a", 0), says("a", 0), says("b", 1), says("b", 0)], 4),
        ("1", [None], 1),
    ],
    ids=["idle", "busy", "two ingresses", "gone"],
)
def test_it_drains_until_every_ingress_has_answered_all(
    run: dict[str, str], replicas: str, said: list[Any], asked: int, capsys: pytest.CaptureFixture[str]
) -> None:
    ingresses = Ingresses(run, *said)
    draining(ingresses, run, ingress__num_replicas=replicas).drain()
    assert ingresses.saw_the_mark == [True] * asked
    assert not marker(run).exists()
    left = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert left == [str(one["requests"]) for one in said if one and one["requests"]]


def test_it_drains_no_longer_than_it_may(run: dict[str, str]) -> None:
    ingresses = Ingresses(run, says("a", 1))
    draining(ingresses, run, llm__graceful_shutdown_timeout_s="0.01").drain()
    assert ingresses.saw_the_mark
    assert not marker(run).exists()


def test_an_interrupted_drain_leaves_no_mark(run: dict[str, str]) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    application = draining(Ingresses(run, None), run)
    application._ingress = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        application.drain()
    assert not marker(run).exists()


def test_an_application_shares_neither_files_nor_ports_with_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each variable of files or ports is one that Ray reads. Where the API is on loopback only, so is Ray."""
    monkeypatch.setattr(serve_run, "free_port", lambda beside: beside + 500)
    folder = "/tmp/satori-run-12345678"
    ports = SimpleNamespace(variables=lambda: {"RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": "30200"})
    own = serve_run.of_its_own(load({"preset": "nano-cpu", "http.port": "8001"}), folder, ports)
    assert own["RAY_SERVE_FALLBACK_PROXY_HTTP_PORT"] == "8501"
    assert {name for name, value in own.items() if name.startswith("RAY_SERVE") and not value.startswith(folder)} == {
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT",
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT",
    }
    sources = "".join(Path(module.__file__).read_text() for module in (constants, ray_constants, utils))
    assert {name for name in own if f'"{name}"' not in sources} == {"GRADIO_TEMP_DIR", "RAY_preload_python_modules"}
    longest = "ray/session_2026-11-30_00-00-00_000000_4194304/sockets/plasma_store"
    assert len(f"{folder}/{longest}") <= 107, "the path of a socket"
    listens = serve_run.of_its_own(load({"preset": "nano-cpu", "http.host": "0.0.0.0"}), folder, ports)
    assert own.keys() - listens.keys() == {ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR, "RAY_preload_python_modules"}


def test_what_a_run_leaves_in_the_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links while it runs, Ray's logs afterwards, in a folder of its user's own; another port has files of its own."""
    monkeypatch.setattr(serve_run, "FILES", tmp_path / ".run")
    monkeypatch.setattr(serve_run, "hide_token", lambda: None)
    made = Application.__new__(Application)
    made._settings, made._folder = load({"preset": "nano-cpu", "http.port": "8001"}), SimpleNamespace(name=str(tmp_path / "run"))  # type: ignore[assignment]
    made._variables = {"RAY_TMPDIR": made._folder.name}
    for attempt in ("first", "second"):
        made._take_place()
        logs = tmp_path / "run" / "ray" / "session_latest" / "logs"
        logs.mkdir(parents=True)
        (logs / "raylet.out").write_text(attempt)
        assert (tmp_path / ".run" / "logs-8001" / "raylet.out").read_text() == attempt
        assert (tmp_path / ".run" / "run-8001").readlink() == tmp_path / "run"
        made._keep_logs()
        shutil.rmtree(tmp_path / "run")
        assert {path.name for path in (tmp_path / ".run").iterdir()} == {"logs-8001", "serve-8001.log"}
        assert (tmp_path / ".run" / "logs-8001" / "raylet.out").read_text() == attempt
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / ".run", tmp_path / ".run" / "serve-8001.log")}
    assert modes == {".run": 0o700, "serve-8001.log": 0o600}
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(SatoriError, match=r"\.run is not a folder of this user \(uid 12345\); allowed: a checkout"):
        made._take_place()
