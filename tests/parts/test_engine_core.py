"""An engine core's process, without an application: one that cannot start, and one whose replica is gone."""

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from deployments.errors import EngineLostError
from deployments.replica.engine_core import EngineProxy
from deployments.settings import load
from tests.support.paths import ROOT
from tests.support.processes import output_until


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an engine of this preset needs."""
    for name, value in load({"preset": "nano-cpu"}).llm.env.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def forking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have processes forked that would be spawned: so vLLM starts an engine's workers on GPUs, but not on CPUs."""
    lines = """
        import multiprocessing

        get_context = multiprocessing.get_context
        multiprocessing.get_context = lambda method=None: get_context("fork" if method == "spawn" else method)
    """
    (tmp_path / "sitecustomize.py").write_text(textwrap.dedent(lines))
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.fixture
def core() -> Iterator[EngineProxy]:
    started = EngineProxy(cpu=True)
    yield started
    started.close()


def test_an_error_at_the_start_names_what_vllm_says(core: EngineProxy) -> None:
    core.imported()
    with pytest.raises(EngineLostError, match="max_model_len"):
        core.configure(load({"preset": "nano-cpu", "engine.max_model_len": 1_000_000}))


def test_an_error_names_the_status_of_a_process_that_was_killed(core: EngineProxy) -> None:
    core.kill()
    with pytest.raises(EngineLostError, match="status -9"):
        core.imported()


def test_an_engine_ends_with_its_replica_however_that_ends() -> None:
    replica = """
        from deployments.replica.engine_core import EngineProxy
        from deployments.settings import load

        core = EngineProxy(cpu=True)
        core.imported()
        core.configure(load({"preset": "nano-cpu"}))
        core.load()
        print("the engine's process:", core._process.pid, flush=True)
        input()
    """
    command = [sys.executable, "-c", textwrap.dedent(replica)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        engine = psutil.Process(int(output_until(process, "the engine's process:", 120).split()[-1]))
        process.kill()
    gone, left = psutil.wait_procs([engine], timeout=30)
    assert (gone, left) == ([engine], [])


def test_forked_workers_start_and_none_survives_its_engine(forking: None, core: EngineProxy) -> None:
    """A worker that inherits a lock never starts, and one that hangs when its engine is killed would keep a GPU's memory."""
    core.imported()
    two = {"engine.tensor_parallel_size": 2, "engine.distributed_executor_backend": "mp"}
    core.configure(load({"preset": "nano-cpu"} | two))
    core.load()
    engine = psutil.Process(core._process.pid)
    workers = [process for process in engine.children() if "Worker" in " ".join(process.cmdline())]
    assert len(workers) == 2
    for worker in workers:
        worker.suspend()
    engine.kill()
    engine.wait(10)
    assert all(worker.is_running() for worker in workers), "nothing has killed them yet"
    core.kill()
    gone, left = psutil.wait_procs(workers, timeout=30)
    assert (len(gone), left) == (2, [])
