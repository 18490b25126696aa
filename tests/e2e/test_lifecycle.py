"""Starts that fail: a taken port, a wrong setting and a model that cannot be had are named at once.

How an application stops is shown where one does: by `serve shutdown` in the folder `default`, drained in `test_replicas.py`, and at
once in `test_autoscaling.py`.
"""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.application import SERVE
from tests.support.paths import ROOT


def launch(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deployments.launch", *arguments]
    return subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=60)


def test_a_taken_port_is_told_with_its_owner() -> None:
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", 8000))
        taken.listen()
        done = launch()
    assert done.returncode == 1
    assert f"error: port 8000 is taken by process {os.getpid()}" in done.stderr


def test_wrong_settings_end_make_serve_at_once() -> None:
    done = launch("preset=nano-cpu", "engine.max_model_len=long")
    assert done.returncode == 1
    assert done.stderr.startswith("error: engine.max_model_len='long'")


def test_a_model_that_cannot_be_downloaded_is_told() -> None:
    done = launch("preset=satori-7b-4090", "llm.num_gpus=0", "model=nobody/no-such-model", HF_HUB_OFFLINE="1")
    assert done.returncode == 1
    assert "nobody/no-such-model, from the hub or its cache" in done.stdout
    assert "error: model='nobody/no-such-model': could not be downloaded" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["preset=none-such"], "preset='none-such': no such preset; allowed: nano-cpu"),
        (["engin.max_model_len=1"], "unknown key; allowed: preset, model"),
        (["engine.max_model_len=long"], "engine.max_model_len='long'"),
        (["model=models/none-such"], "model='models/none-such'"),
    ],
)
def test_wrong_settings_end_serve_run_with_one_message(arguments: list[str], words: str) -> None:
    done = subprocess.run([SERVE, "run", "deployments.config", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_serve_build_writes_a_config_of_the_default_application(tmp_path: Path) -> None:
    built = tmp_path / "serve.yaml"
    subprocess.run([SERVE, "build", "deployments:default", "-o", str(built)], cwd=ROOT, check=True, capture_output=True, timeout=60)
    assert "import_path: deployments:default" in built.read_text()
    assert "name: LLM" in built.read_text()
    assert "name: Ingress" in built.read_text()
