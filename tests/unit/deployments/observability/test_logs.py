"""The log of requests: a JSON object a line, in a file of the process; and the application's own lines."""

import atexit
import json
import logging.handlers
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.serve._private import logging_utils

from deployments.observability import logs
from tests.support.until import until


@pytest.fixture
def listener(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[logging.handlers.QueueListener]:
    """The log of requests of an ingress, in a folder of the test's own; it ends with the test."""
    monkeypatch.setattr(logging_utils, "get_serve_logs_dir", lambda: str(tmp_path))
    before = list(logs._requests.handlers)
    listener = logs.write_requests("Ingress")
    yield listener
    logs._requests.handlers[:] = before
    listener.stop()
    atexit.unregister(listener.stop)
    for handler in listener.handlers:
        handler.close()


def test_a_request_that_has_ended_is_a_line_of_json(tmp_path: Path, listener: logging.handlers.QueueListener) -> None:
    logs.ended("chatcmpl-1", "ended (stop)", tokens=3, seconds=0.25)
    [file] = tmp_path.glob("requests_Ingress_*.log")
    text = until(file.read_text, "a line", holds=lambda text: text.endswith("\n"))
    line = json.loads(text)
    assert line.pop("time").endswith("+00:00")
    assert line == {"level": "INFO", "request_id": "chatcmpl-1", "ended": "ended (stop)", "tokens": 3, "seconds": 0.25}


def test_lines_are_in_the_order_in_which_requests_ended(tmp_path: Path, listener: logging.handlers.QueueListener) -> None:
    for number in range(100):
        logs.ended(f"chatcmpl-{number}", "aborted")
    [file] = tmp_path.glob("requests_Ingress_*.log")
    text = until(file.read_text, "all lines", holds=lambda text: text.count("\n") == 100)
    assert [json.loads(line)["request_id"] for line in text.splitlines()] == [f"chatcmpl-{number}" for number in range(100)]


def test_a_line_of_the_applications_own_is_written_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    logs.logger("of-this-test").warning("the replica of request %s is lost \ud800", "chatcmpl-1")
    line = capfd.readouterr().err
    assert line.startswith("WARNING ")
    assert line.endswith("satori.of-this-test: the replica of request chatcmpl-1 is lost \\ud800\n")
