"""The log of requests: a JSON object a line, in a file of the process."""

import json
import time
from pathlib import Path

import pytest
from ray.serve._private import logging_utils

from deployments import logs


def test_a_request_that_has_ended_is_a_line_of_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging_utils, "get_serve_logs_dir", lambda: str(tmp_path))
    monkeypatch.setattr(logs, "_ended", None)
    logs.write_requests("Ingress")
    logs.ended("chatcmpl-1", "ended (stop)", tokens=3, seconds=0.25)
    [file] = tmp_path.glob("requests_Ingress_*.log")
    while not (text := file.read_text()).endswith("\n"):
        time.sleep(0.001)
    line = json.loads(text)
    assert line.pop("time").endswith("+00:00")
    assert line == {"level": "INFO", "request_id": "chatcmpl-1", "ended": "ended (stop)", "tokens": 3, "seconds": 0.25}
