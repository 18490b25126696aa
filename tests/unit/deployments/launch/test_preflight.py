"""What is checked before anything is started."""

import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from ray.serve._private import constants

from deployments import settings
from deployments.errors import PortInUseError, SettingsError, WeightsError
from deployments.host import cards
from deployments.launch import preflight
from deployments.launch.preflight import IngressPorts, check_gpus, check_port, fetch_model, free_port
from deployments.settings import Settings
from tests.support.ports import free_ports


def load(**given: Any) -> Settings:
    return settings.load({"preset": "nano-cpu"} | {name.replace("__", "."): value for name, value in given.items()})


def test_a_taken_port_is_told_with_its_owner_and_another() -> None:
    [port] = free_ports(1)
    check_port(port)
    with socket.create_server(("127.0.0.1", port)):
        with pytest.raises(PortInUseError) as error:
            check_port(port)
        assert f"port {port} is taken by process {os.getpid()} (" in str(error.value)
        assert f"ARGS=http.port={port + 1}" in str(error.value)
    check_port(port)


def test_a_port_beside_is_free_and_no_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[int] = []
    found = lambda port: SimpleNamespace(status=psutil.CONN_LISTEN, laddr=SimpleNamespace(port=port))  # noqa: E731
    monkeypatch.setattr(psutil, "net_connections", lambda kind: [found(port) for port in taken])
    assert [free_port(8000), free_port(8001), free_port(65535)] == [8500, 8501, 65035]
    taken += [8500, 65035]
    assert [free_port(8000), free_port(8001), free_port(65535)] == [9500, 8501, 64035]
    taken += range(65536)
    with pytest.raises(PortInUseError, match="none of the 65 ports is free that the application on 8000"):
        free_port(8000)


def test_each_application_of_a_host_has_ingress_ports_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """By Serve's variables, in neighbouring processes and also where another kind of application has such a port."""
    monkeypatch.setattr(preflight, "INGRESS_PORTS", range(25000, 25030))
    monkeypatch.setattr(preflight, "RANGES", 3)
    first = IngressPorts()
    with socket.create_server(("127.0.0.1", 25015)):
        second = IngressPorts()
    assert (first.ports, second.ports) == (range(25000, 25010), range(25020, 25030))
    third = IngressPorts()
    assert third.ports == range(25010, 25020)
    with pytest.raises(PortInUseError, match="all 3 ranges of ports from 25000 to 25029 are taken"):
        IngressPorts()
    first.close()
    again = IngressPorts()
    assert again.ports == first.ports
    assert again.variables().keys() <= set(re.findall(r'"(RAY_SERVE_\w+)"', Path(constants.__file__).read_text()))
    for one in (second, third, again):
        one.close()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with two cards, vLLM's CUDA build and what that needs."""
    monkeypatch.setattr(cards, "cuda_build", lambda: True)
    monkeypatch.setattr(cards, "missing", list)
    monkeypatch.setattr(cards, "crowded", lambda utilization: {})
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


def test_a_card_that_others_use_is_left_alone_and_told(
    cuda: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []
    monkeypatch.delenv(cards.VISIBLE, raising=False)
    monkeypatch.setattr(cards, "crowded", lambda utilization: asked.append(utilization) or {1: "GPU 1: a neighbour"})
    assert check_gpus(load(preset="nano-gpu"), "local", gpus=4) == {cards.VISIBLE: "0,2,3", cards.ORDER: "PCI_BUS_ID"}
    assert capsys.readouterr().out.split() == ["WARNING", "left", "alone:", "GPU", "1:", "a", "neighbour"]
    with pytest.raises(SettingsError, match=r"num_replicas=4 .* 3 can start; this machine has left 3 GPUs\nGPU 1: a neighbour"):
        check_gpus(load(preset="nano-gpu", llm__num_replicas=4), "local", gpus=4)
    monkeypatch.setattr(cards, "crowded", lambda utilization: asked.append(utilization) or {0: "GPU 0: a desktop"})
    with pytest.raises(SettingsError, match="GPU 0: a desktop"):
        check_gpus(load(preset="satori-7b-4090"), "local", gpus=1)
    assert asked == [0.3, 0.3, 0.92]


def test_cards_that_the_user_chose_are_taken(
    cuda: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(cards.VISIBLE, "0,2")
    monkeypatch.setattr(cards, "crowded", lambda utilization: {0: "GPU 0: a desktop", 1: "GPU 1: a neighbour"})
    assert check_gpus(load(preset="nano-gpu"), "local", gpus=4) == {}
    assert capsys.readouterr().out.split() == ["WARNING", "GPU", "0:", "a", "desktop"]


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
