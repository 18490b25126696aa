"""What is checked before anything is started."""

import os
import socket
from collections.abc import Callable
from typing import Any

import pytest

from deployments import settings
from deployments.errors import PortInUseError, SettingsError, WeightsError
from deployments.host import cards
from deployments.launch import preflight
from deployments.launch.preflight import HAPROXY_PORTS, check_gpus, check_ports, fetch_model
from deployments.settings import Settings
from tests.support.ports import free_ports


def load(**given: Any) -> Settings:
    return settings.load({"preset": "nano-cpu"} | {name.replace("__", "."): value for name, value in given.items()})


@pytest.mark.parametrize("taken", [None, 0, 1, 2])
def test_a_taken_port_is_told_with_its_owner(taken: int | None) -> None:
    ports = free_ports(3)
    variables = dict(zip(HAPROXY_PORTS, map(str, ports[1:]), strict=True))
    if taken is None:
        check_ports(load(http__port=ports[0]), variables)
        return
    with socket.create_server(("127.0.0.1", ports[taken])):
        with pytest.raises(PortInUseError) as error:
            check_ports(load(http__port=ports[0]), variables)
        assert f"port {ports[taken]} is taken by process {os.getpid()} (" in str(error.value)
        assert "ARGS=http.port=8001" in str(error.value)
    check_ports(load(http__port=ports[0]), variables)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two cards, vLLM's CUDA build and what that needs."""
    monkeypatch.setattr(cards, "cuda_build", lambda: True)
    monkeypatch.setattr(cards, "missing", list)
    monkeypatch.setattr(cards, "crowded", lambda utilization: [])
    monkeypatch.setattr(cards, "cards", lambda: 2)


def test_gpus_are_counted_where_this_machine_is_the_cluster(cuda: None) -> None:
    wanted = settings.load({"preset": "satori-7b-4090", "llm.num_replicas": "2", "llm.accelerator_type": "GeForce-RTX-4090"})
    check_gpus(wanted, "local", gpus=2)
    check_gpus(wanted, "10.0.0.1:6379", gpus=0)
    with pytest.raises(SettingsError, match=r"llm\.num_replicas=2 .* 1 can start; this machine has 1 GPU"):
        check_gpus(wanted, "local", gpus=1)


def test_what_a_machine_lacks_for_its_cards_is_told_at_once(cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cards, "missing", lambda: ["no Python.h", "no gcc"])
    with pytest.raises(SettingsError, match=r"no Python\.h\nno gcc"):
        check_gpus(load(preset="nano-gpu"), "local", gpus=2)
    check_gpus(load(preset="nano-gpu"), "10.0.0.1:6379", gpus=2)


def test_a_card_that_others_use_is_told(cuda: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked = []
    monkeypatch.setattr(cards, "crowded", lambda utilization: asked.append(utilization) or ["GPU 0: a desktop"])
    check_gpus(load(preset="nano-gpu"), "local", gpus=2)
    assert capsys.readouterr().out.split() == ["WARNING", "GPU", "0:", "a", "desktop"]
    monkeypatch.setattr(cards, "cards", lambda: 1)
    with pytest.raises(SettingsError, match="GPU 0: a desktop"):
        check_gpus(load(preset="satori-7b-4090"), "local", gpus=1)
    assert asked == [0.3, 0.92]


def test_each_build_of_vllm_runs_on_what_it_is_for(cuda: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SettingsError, match=r"llm\.num_gpus=0, but vLLM's CUDA build"):
        check_gpus(load(), "local", gpus=2)
    monkeypatch.setattr(cards, "cuda_build", lambda: False)
    check_gpus(load(), "local", gpus=2)
    with pytest.raises(SettingsError, match=r"llm\.num_gpus=1, but vLLM's CPU build .* make serve EXTRA=gpu"):
        check_gpus(load(preset="nano-gpu"), "local", gpus=2)


def test_a_model_that_is_a_directory_is_not_downloaded(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(preflight, "download", lambda *_, **__: pytest.fail("it is here"))
    fetch_model(load())
    assert capsys.readouterr().out.split() == ["model", "models/nano"]


def test_a_model_of_the_hub_is_fetched_with_its_progress(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fetched: list[str] = []

    def download(settings: Settings, report: Callable[[str], None], **options: Any) -> Settings:
        assert options == {}, "all files, from the hub"
        report("1.00 of 2.00 GB from the hub")
        fetched.append(settings.model)
        return settings

    monkeypatch.setattr(preflight, "download", download)
    fetch_model(load(model="nobody/no-such-model"))
    assert fetched == ["nobody/no-such-model"]
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "model nobody/no-such-model, from the hub or its cache",
        "model 1.00 of 2.00 GB from the hub 0.0 s",
        "model complete 0.0 s",
    ]


def test_a_model_that_cannot_be_had_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError, match="model='nobody/no-such-model': could not be downloaded"):
        fetch_model(load(model="nobody/no-such-model"))
    assert "complete" not in capsys.readouterr().out
