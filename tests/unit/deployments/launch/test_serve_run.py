"""A running application as the launcher sees it: its environment, its key, and how it is drained."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
from ray.serve._private import constants

from deployments.access import keys
from deployments.access.keys import KeyStore, digest
from deployments.host.environment import SERVING
from deployments.host.run import RUN, marker
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

    def __init__(self, run: str, *said: dict[str, Any] | None) -> None:
        self._mark, self._said = marker(run), list(said)
        self.saw_the_mark: list[bool] = []

    def __call__(self) -> dict[str, Any] | None:
        self.saw_the_mark.append(self._mark.exists())
        return self._said.pop(0) if len(self._said) > 1 else self._said[0]


def says(ingress: str, requests: int) -> dict[str, Any]:
    return {"id": ingress, "requests": requests}


def draining(ingresses: Ingresses, run: str, **settings: str) -> Application:
    made = Application.__new__(Application)
    given = {name.replace("__", "."): value for name, value in settings.items()}
    made._settings, made._variables = load({"preset": "nano-cpu"} | given), {RUN: run}
    made._ingress = ingresses  # type: ignore[method-assign]
    return made


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A run whose mark is in a folder of the test's own."""
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    return "of-this-test"


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
    run: str, replicas: str, said: list[Any], asked: int, capsys: pytest.CaptureFixture[str]
) -> None:
    ingresses = Ingresses(run, *said)
    draining(ingresses, run, ingress__num_replicas=replicas).drain()
    assert ingresses.saw_the_mark == [True] * asked
    assert not marker(run).exists()
    left = [line.split()[1] for line in capsys.readouterr().out.splitlines()]
    assert left == [str(one["requests"]) for one in said if one and one["requests"]]


def test_it_drains_no_longer_than_it_may(run: str) -> None:
    ingresses = Ingresses(run, says("a", 1))
    draining(ingresses, run, llm__graceful_shutdown_timeout_s="0.01").drain()
    assert ingresses.saw_the_mark
    assert not marker(run).exists()


def test_an_interrupted_drain_leaves_no_mark(run: str) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    application = draining(Ingresses(run, None), run)
    application._ingress = interrupted  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        application.drain()
    assert not marker(run).exists()


def test_haproxys_files_are_in_one_folder_with_room_for_the_node_in_a_sockets_path() -> None:
    """Each variable is one that Serve reads; its default is a folder that two users of a host cannot share."""
    folder = "/tmp/satori-run-12345678"
    files = serve_run.haproxy_files(folder)
    assert all(Path(file) == Path(folder) or Path(file).parent == Path(folder) for file in files.values())
    source = Path(constants.__file__).read_text()
    assert {name for name in files if f'"{name}"' not in source} == set()
    defaults = set(re.findall(r'"(RAY_SERVE_HAPROXY_\w+)", "/tmp/haproxy-serve', source))
    assert defaults == files.keys()
    assert len(files["RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH"]) + 57 <= 107
