"""A core for the engine alone: where, and that all threads of the others leave it."""

import os
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from deployments.host import cores
from deployments.settings import load

TWO_THREADS = "import sys, threading; threading.Thread(target=sys.stdin.read).start(); print(flush=True)"
ALL = sorted(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("available", "words", "told"),
    [
        ({0, 1}, {}, {cores.VARIABLE: "0,1"}),
        ({2, 5}, {}, {cores.VARIABLE: "2,5"}),
        ({0}, {}, {}),
        ({0, 1, 2}, {}, {}),
        ({0, 1}, {"llm.num_replicas": "2"}, {}),
        ({0, 1}, {"autoscaling.enabled": "true"}, {}),
        ({0, 1}, {"preset": "satori-7b-4090"}, {}),
    ],
)
def test_an_only_engine_without_a_gpu_has_one_of_two_cores(
    monkeypatch: pytest.MonkeyPatch, available: set[int], words: dict[str, str], told: dict[str, str]
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: available)
    assert cores.variables(load({"preset": "nano-cpu"} | words)) == told


@pytest.fixture
def started() -> Iterator[list[psutil.Popen]]:
    """A process of two threads, and one that looks like an engine's."""
    processes = [
        psutil.Popen([sys.executable, "-c", TWO_THREADS, *name], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for name in ([], ["deployments.engine.process"])
    ]
    for process in processes:
        process.stdout.readline()
    yield processes
    for process in processes:
        process.communicate()


def of_threads(process: psutil.Popen) -> list[list[int]]:
    return [sorted(os.sched_getaffinity(thread.id)) for thread in process.threads()]


@pytest.mark.skipif(len(ALL) < 2, reason="there is one core, which all have")
def test_all_threads_but_the_engines_keep_to_the_last(started: list[psutil.Popen]) -> None:
    cores.pin_to_last(started, f"{ALL[0]},{ALL[-1]}")
    assert list(map(of_threads, started)) == [[[ALL[-1]]] * 2, [ALL] * 2]


def test_an_engine_takes_all_of_them_whoever_starts_it() -> None:
    code = "import os; from deployments.host.cores import use_all_cores; use_all_cores(); print(sorted(os.sched_getaffinity(0)))"
    environment = os.environ | {cores.VARIABLE: ",".join(map(str, ALL))}

    def keep() -> None:
        os.sched_setaffinity(0, {ALL[-1]})

    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, preexec_fn=keep, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == str(ALL)
