"""An engine core's process, without an application: one that cannot start, and one whose replica is gone."""

import subprocess
import sys
import textwrap
from collections.abc import Iterator

import psutil
import pytest
from conftest import ROOT

from deployments.core import EngineCore
from deployments.errors import EngineLostError
from deployments.settings import load


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an engine of this preset needs."""
    for name, value in load({"preset": "nano-cpu"}).llm.env.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def core() -> Iterator[EngineCore]:
    started = EngineCore(cpu=True)
    yield started
    started.close()


def test_what_vllm_says_of_a_start_that_fails_is_told(core: EngineCore) -> None:
    core.imported()
    with pytest.raises(EngineLostError, match="max_model_len"):
        core.configure(load({"preset": "nano-cpu", "engine.max_model_len": 1_000_000}))


def test_a_process_that_is_killed_at_its_start_is_told(core: EngineCore) -> None:
    core.kill()
    with pytest.raises(EngineLostError, match="status -9"):
        core.imported()


def test_an_engine_ends_with_its_replica_however_that_ends() -> None:
    replica = """
        from deployments.core import EngineCore
        from deployments.settings import load

        core = EngineCore(cpu=True)
        core.imported()
        core.configure(load({"preset": "nano-cpu"}))
        core.load()
        print("engine", core._process.pid, flush=True)
        input()
    """
    command = [sys.executable, "-c", textwrap.dedent(replica)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        [pid] = next(line.split()[1:] for line in process.stdout if line.startswith("engine "))  # vLLM writes there, too
        engine = psutil.Process(int(pid))
        process.kill()
    gone, left = psutil.wait_procs([engine], timeout=30)
    assert (gone, left) == ([engine], [])
