"""A plugin for pytest: vLLM's tests get a server that runs already, instead of one that they start."""

import inspect
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import HfApi

OUTCOMES: dict[str, str] = {}


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the server's URL, and the file into which outcomes are written."""
    parser.addoption("--server")
    parser.addoption("--outcomes")


def pytest_configure(config: pytest.Config) -> None:
    """Replace the class of vLLM's tests that starts servers."""
    import tests.utils as utils  # vLLM's

    class Running(utils.RemoteOpenAIServer):  # type: ignore[misc,name-defined]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            host, _, port = config.getoption("--server").removeprefix("http://").partition(":")
            self.host, self.port, self.uds = host, int(port), None

        def __enter__(self) -> "Running":
            return self

        def __exit__(self, *error: object) -> None:
            pass

    utils.RemoteOpenAIServer = Running
    HfApi.snapshot_download = lambda *_, **__: "nano"  # adapters: the servers have none, but other tests of the file need none


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what asks no server: it says nothing of ours."""
    asking = [item for item in items if isinstance(item, pytest.Function) and _asks(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in asking])
    items[:] = asking


def _asks(item: pytest.Function) -> bool:
    fixtures = any("server" in name or "client" in name for name in item.fixturenames)
    return fixtures or "RemoteOpenAIServer" in inspect.getsource(item.function)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note how a test ended."""
    if report.when == "call" or report.outcome != "passed":
        OUTCOMES[report.nodeid] = report.outcome


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write all outcomes."""
    Path(session.config.getoption("--outcomes")).write_text(json.dumps(OUTCOMES, indent=1))


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End at once: something that vLLM's tests import keeps the process alive."""
    sys.stdout.flush()
    os._exit(0)
